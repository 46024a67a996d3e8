"""quantize_, dequantize_, float_state_dict: layers change class in place; Parameters stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from . import integer_only
from .fusion import unfuse_
from .nn import REGISTRY, ProductLayer, QuantizedLayer
from .nn.quantized import STATE_SUFFIX, become_float, change_class, original_type, quantized_class
from .scheme import LayerScheme, NormScheme, Scheme
from .signs import nonnegative_inputs

CONVERSION = "subbyte_conversion"
"""The attribute of a quantized model that holds its Conversion."""

_PART_OF_FLOAT = "the layer that it is a part of stays float, and reads its weight without calling it"
_FUSED_ENCODER = "subbyte_activation_relu_or_gelu"

Filter = Callable[[nn.Module, str], bool]


@dataclass(frozen=True)
class Conversion:
    """What quantize_ did; kept on the model under CONVERSION for report().

    converted    names of the layers that changed class
    left_float   name -> why it was not converted, for modules with parameters of their own
    signs        "" if a graph of the model told which inputs cannot be negative, otherwise why every one is signed
    """

    converted: tuple[str, ...]
    left_float: dict[str, str] = field(default_factory=dict)
    signs: str = ""


def quantize_(model: nn.Module, scheme: Scheme | str, filter_fn: Filter | None = None) -> nn.Module:
    """Make the layers of a model integer layers, in place; returns the model.

    scheme     a Scheme or the name of a recipe
    filter_fn  (module, name) -> convert it? All layers with a known type if None.

    A module is converted by its EXACT type (the keys of nn.REGISTRY): a subclass may do more than its base, so it is
    left alone and listed by report(), as is a layer with a setting that has no integer form. Parameters, buffers,
    hooks, parametrizations, device, dtype, requires_grad and state_dict keys stay; an optimizer built before stays
    right. Activations behind a ReLU get unsigned codes where the model can be traced by torch.fx. With
    scheme.integer_only the model itself changes class, too: it runs as an integer-only network.

    Raises ValueError if nothing was converted (silence would look like success), TypeError if the model is quantized
    already, integer_only.UnsupportedError (a ValueError) if the scheme is integer-only and the model has a node that
    has no step there; the model is then what it was.
    """
    scheme = Scheme.from_name(scheme) if isinstance(scheme, str) else scheme
    if not isinstance(scheme, Scheme):
        raise TypeError(f"quantize_ takes a Scheme or the name of a recipe, not {scheme!r}")
    modules = dict(model.named_modules())  # a shared module once, under its first name
    done = [n for n, m in quantized_layers(model).items() if not m.scheme.is_float]
    if done:
        raise TypeError(f"the model is quantized already ({len(done)} layers, first {done[0]!r}); dequantize_ it first")
    wanted = {n: c for n, m in modules.items() if (c := quantized_class(m)) and (filter_fn is None or filter_fn(m, n))}
    refused = {n: reason for n, c in wanted.items() if (reason := c.refuses(modules[n]))}
    refused |= {n: _PART_OF_FLOAT for n, c in wanted.items() if c.inside and not _inside(n, c, wanted, refused)}
    wanted = {n: c for n, c in wanted.items() if n not in refused}
    weighted = [n for n, c in wanted.items() if issubclass(c, ProductLayer)]
    position = {weighted[-1]: "last", weighted[0]: "first"} if weighted else {}
    nonnegative, reason = nonnegative_inputs(model)
    converted, left = [], {}
    for name, module in modules.items():
        if name not in wanted:
            if any(True for _ in module.parameters(recurse=False)):
                left[name] = refused.get(name) or _why_not(module, filter_fn)
            continue
        part: LayerScheme | NormScheme | None
        if name in weighted:
            part = scheme.for_layer(name, position.get(name, ""))
            if part is not None and name in nonnegative:
                part = part.unsigned_activation()
        else:
            part = scheme.for_norm(name)
        inside = wanted[name].inside
        if inside is not None and not isinstance(modules[name.rpartition(".")[0]], inside):
            left[name] = _PART_OF_FLOAT
            continue
        if part is None:
            left[name] = "the scheme leaves it float"
            continue
        change_class(module, wanted[name])
        cast(QuantizedLayer, module)._attach(part)
        converted.append(name)
    if not converted:
        kinds = ", ".join(sorted(t.__name__ for t in REGISTRY))
        present = ", ".join(sorted({type(m).__name__ for m in model.modules()}))
        raise ValueError(f"nothing to quantize: the model has {present}; layers that convert are exactly {kinds}")
    for module in model.modules():
        _leave_fused_encoder(module)
    setattr(model, CONVERSION, Conversion(tuple(converted), left, reason))
    if scheme.integer_only:
        try:
            integer_only.attach(model)
        except integer_only.UnsupportedError:
            for layer in quantized_layers(model).values():
                become_float(layer)
            _clear(model)
            raise
    return model


def _inside(name: str, cls: type[QuantizedLayer], wanted: dict, refused: dict) -> bool:
    """Is the layer that this one is a part of converted as well?"""
    owner = name.rpartition(".")[0]
    return owner in wanted and owner not in refused and issubclass(wanted[owner], cast(type, cls.inside))


def _leave_fused_encoder(module: nn.Module) -> None:
    """Keep torch's encoder layer from calling, in eval mode, one float kernel that reads the weights of its layers.

    A zero here is torch's own way to say that the kernel does not apply; the value comes back in dequantize_.
    """
    if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, QuantizedLayer) for m in module.children()):
        vars(module).setdefault(_FUSED_ENCODER, module.activation_relu_or_gelu)
        module.activation_relu_or_gelu = 0


def _why_not(module: nn.Module, filter_fn: Filter | None) -> str:
    if quantized_class(module):
        return "filter_fn said no"
    bases = [t.__name__ for t in REGISTRY if isinstance(module, t)]
    if bases:
        return f"a subclass of {bases[0]}: it may do more than that (register it to convert it)"
    return f"no integer layer for {original_type(module).__name__}"


def dequantize_(model: nn.Module) -> nn.Module:
    """Undo quantize_, in place: torch's own layers with the same Parameters. Returns the model.

    A norm trained with L1 statistics that eval mode measures, too (LayerNorm, GroupNorm...), stays a subbyte layer, in
    floats: torch has no layer that computes it. Adapters (add_lora_) are merged into their layers. A fused model is
    unfused.
    Raises TypeError if no layer is quantized.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    if not layers:
        raise TypeError("dequantize_: the model has no quantized layer")
    unfuse_(model)
    integer_only.detach(model)
    for module in layers:
        float_class = module.release()
        if float_class is not None:
            change_class(module, float_class)
    _clear(model)
    return model


def _clear(model: nn.Module) -> None:
    """Take away what quantize_ left on modules beside the classes of layers."""
    for m in model.modules():
        if isinstance(m, nn.TransformerEncoderLayer) and hasattr(m, _FUSED_ENCODER):
            m.activation_relu_or_gelu = vars(m).pop(_FUSED_ENCODER)
    if hasattr(model, CONVERSION):
        delattr(model, CONVERSION)


def float_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the float model: what model.state_dict() gives, without a quantizer's own buffers.

    Loads with strict=True into the model before quantize_. A layer with adapters (add_lora_) appears merged.
    """
    state = model.state_dict()
    for name, layer in quantized_layers(model).items():
        layer.to_float_state(state, f"{name}." if name else "")
    return {k: v for k, v in state.items() if not k.endswith(STATE_SUFFIX)}


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Name -> layer for every subbyte layer, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
