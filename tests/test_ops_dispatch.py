"""Registration (torch.library.opcheck on every op), the choice of a backend, and the record of what ran."""

import functools
import threading
import types
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from op_calls import CALLS
from subbyte import backends, ops
from subbyte.numerics import IntFormat
from subbyte.ops import BackendError, dispatch
from subbyte.qtensor import QTensor

X = torch.tensor([[1.0, -3.0], [2.0, 0.5]])


def test_every_op_has_calls_here():
    assert set(CALLS) == set(ops.registered)


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    with ops.use_backend("reference"):
        for args in CALLS[name](1):
            results = torch.library.opcheck(getattr(torch.ops.subbyte, name).default, args)
            assert set(results.values()) == {"SUCCESS"}
            assert len(results) == 4  # schema, autograd registration, fake, aot dispatch with dynamic shapes


# ---------------------------------------------------------------------------------------------- a backend of our own


def fake_backend(name: str, priority: int, reason: str = "", **functions) -> types.ModuleType:
    module = types.ModuleType(name)
    module.NAME, module.PRIORITY, module.available = name, priority, lambda: reason
    for op, function in functions.items():
        setattr(module, op, function)
    return module


@pytest.fixture
def install(monkeypatch):
    """Replace the folder's backends by the given ones."""

    def install(*modules: types.ModuleType) -> None:
        found = {m.NAME: m for m in sorted(modules, key=lambda m: -m.PRIORITY)}
        monkeypatch.setattr(backends, "discover", lambda: found)
        monkeypatch.setattr(backends, "usable", lambda: tuple(m for m in found.values() if not m.available()))

    with ops.use_backend(None):
        yield install


def constant(value: float):
    return lambda x, axis: torch.full((1,) * x.ndim, value)


def refuse(*args):
    return NotImplemented


def test_the_automatic_choice_takes_the_highest_priority_that_covers_the_call(install):
    low, high = fake_backend("low", 1, amax=constant(1.0)), fake_backend("high", 2, amax=constant(2.0))
    install(low, high)
    assert ops.amax(X, ops.WHOLE).item() == 2.0
    assert ops.last_kernel["amax"] == "high"
    high.amax = refuse
    assert ops.amax(X, ops.WHOLE).item() == 1.0
    assert ops.last_kernel["amax"] == "low"
    low.amax = refuse
    assert ops.amax(X, ops.WHOLE).item() == 3.0
    assert ops.last_kernel["amax"] == "reference"


def test_a_backend_without_the_op_is_passed_over(install):
    install(fake_backend("other", 5))
    assert ops.amax(X, ops.WHOLE).item() == 3.0
    assert ops.last_kernel["amax"] == "reference"


def test_a_backend_that_cannot_run_is_never_chosen(install):
    install(fake_backend("absent", 9, "no such device", amax=constant(9.0)))
    assert ops.amax(X, ops.WHOLE).item() == 3.0
    with (
        pytest.raises(BackendError, match="backend 'absent' cannot run here: no such device"),
        ops.use_backend("absent"),
    ):
        pass


def test_a_kernel_that_names_itself_is_recorded(install):
    module = fake_backend("fast", 5, amax=constant(7.0))
    module.ran = {"amax": "amax_f32_16_isa"}
    install(module)
    ops.amax(X, ops.WHOLE)
    assert ops.last_kernel["amax"] == "amax_f32_16_isa"
    with ops.use_backend("fast"):
        ops.amax(X, ops.WHOLE)
    assert ops.last_kernel["amax"] == "amax_f32_16_isa"


def test_a_forced_backend_never_falls_back(install):
    install(fake_backend("picky", 5, amax=refuse), fake_backend("able", 4, amax=constant(4.0)))
    before = dict(ops.last_kernel)
    with ops.use_backend("picky"):
        with pytest.raises(BackendError, match=r"'picky' was forced but does not cover amax\(float32\[2, 2\], -1\)"):
            ops.amax(X, ops.WHOLE)
        with pytest.raises(BackendError, match=r"'picky' was forced but does not cover quantize\("):
            ops.quantize(X, torch.ones(1, 1), None, None, 4, True)
    assert ops.last_kernel == before
    assert ops.amax(X, ops.WHOLE).item() == 4.0


def test_a_forced_backend_is_used_even_where_another_has_priority(install):
    install(fake_backend("low", 1, amax=constant(1.0)), fake_backend("high", 2, amax=constant(2.0)))
    with ops.use_backend("low"):
        assert ops.amax(X, ops.WHOLE).item() == 1.0
        with ops.use_backend("reference"):
            assert ops.amax(X, ops.WHOLE).item() == 3.0
        assert ops.amax(X, ops.WHOLE).item() == 1.0
        with ops.use_backend(None):
            assert ops.amax(X, ops.WHOLE).item() == 2.0
    assert ops.amax(X, ops.WHOLE).item() == 2.0


def test_the_choice_is_restored_after_an_error(install):
    install(fake_backend("low", 1, amax=constant(1.0)))

    def fail():
        with ops.use_backend("reference"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ops.amax(X, ops.WHOLE).item() == 1.0


def test_an_error_inside_a_kernel_is_not_hidden(install):
    def broken(x, axis):
        raise ZeroDivisionError

    install(fake_backend("broken", 1, amax=broken))
    with pytest.raises(ZeroDivisionError):
        ops.amax(X, ops.WHOLE)


def test_a_backend_that_does_not_exist():
    with pytest.raises(BackendError, match=r"no backend 'nonexistent'; there are: .*reference"):
        ops.use_backend("nonexistent").__enter__()
    with ops.use_backend("reference"):
        assert ops.amax(X, ops.WHOLE).item() == 3.0


def test_the_environment_forces_too(install, monkeypatch):
    install(fake_backend("low", 1, amax=constant(1.0)))
    for name, error in (("nonexistent", "no backend"), ("low", "does not cover quantize")):
        monkeypatch.setattr(dispatch, "_forced", name)
        with pytest.raises(BackendError, match=error):
            ops.quantize(X, torch.ones(1, 1), None, None, 4, True)


def test_a_forced_backend_holds_in_other_threads(install):
    install(fake_backend("low", 1, amax=constant(1.0)))
    seen = []
    with ops.use_backend("low"):
        thread = threading.Thread(target=lambda: seen.append(ops.amax(X, ops.WHOLE).item()))
        thread.start()
        thread.join()
    assert seen == [1.0]


# ----------------------------------------------------------------------------------------------------- recording


def test_recording_nests_and_ends():
    outer: dict[str, str] = {}
    inner: dict[str, str] = {}
    q = QTensor(torch.ones(2, 2, dtype=torch.int8), torch.ones(1, 1), IntFormat(4))
    with ops.use_backend("reference"):
        with ops.recording(outer):
            ops.amax(X, ops.WHOLE)
            with ops.recording(inner):
                ops.matmul(q, q)
                ops.note("output", "emulated")
            ops.pack(q)
        ops.quantize(X, torch.ones(1, 1), None, None, 4, True)
        ops.note("output", "lost")
    assert outer == {"amax": "reference", "pack_codes": "reference"}
    assert inner == {"scaled_matmul": "reference", "output": "emulated"}


def test_recording_belongs_to_its_thread():
    record: dict[str, str] = {}
    with ops.use_backend("reference"), ops.recording(record):
        thread = threading.Thread(target=lambda: ops.amax(X, ops.WHOLE))
        thread.start()
        thread.join()
    assert record == {}


# --------------------------------------------------------------------------------- calls that torch need not see


class Seen(TorchDispatchMode):
    """Names of the ops that torch's dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_plain_tensors_without_autograd_skip_torch():
    assert dispatch._eager((X, ops.WHOLE, None))
    assert not dispatch._eager((X.clone().requires_grad_(), ops.WHOLE))
    assert not dispatch._eager((torch.nn.Parameter(X), 1))
    with torch.no_grad():
        assert dispatch._eager((X, ops.WHOLE, None))
        assert dispatch._eager((torch.nn.Parameter(X), 1))
        assert torch.equal(ops.amax(X, ops.WHOLE), torch.ops.subbyte.amax(X, ops.WHOLE))


@torch.no_grad()
def test_a_mode_a_profiler_and_a_transform_see_every_op():
    with Seen() as seen:
        ops.amax(X, ops.WHOLE)
    assert "subbyte.amax.default" in seen.names
    with torch.profiler.profile() as profile:
        ops.amax(X, ops.WHOLE)
    assert "subbyte::amax" in {event.key for event in profile.key_averages()}
    assert ops.amax(X.to("meta"), ops.WHOLE).is_meta
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
        assert isinstance(ops.amax(fake, ops.WHOLE), FakeTensor)
    assert isinstance(ops.amax(fake, ops.WHOLE), FakeTensor)  # outside of its mode, too
    assert not torch.func.vmap(lambda x: torch.tensor(dispatch._eager((x,))).expand(1))(X[None]).any()


@torch.no_grad()
def test_a_compiled_graph_holds_the_op():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: ops.amax(x, ops.WHOLE) + 1, backend=backend, fullgraph=True)
    assert compiled(X).item() == ops.amax(X, ops.WHOLE).item() + 1
    assert "subbyte.amax" in graphs[0].code


# ------------------------------------------------------------------------------------------------------- scanning


def test_a_missing_library_is_said_once(monkeypatch):
    present = fake_backend("present", 1, amax=constant(1.0))
    optional, expected = fake_backend("gpu", 3, "no GPU"), fake_backend("native", 2, "it is not built: build it")
    expected.EXPECTED = True
    monkeypatch.setattr(backends, "discover", lambda: {m.NAME: m for m in (optional, expected, present)})
    monkeypatch.setattr(backends, "usable", functools.cache(backends.usable.__wrapped__))
    with ops.use_backend(None):
        with pytest.warns(UserWarning, match="native kernels cannot run here .it is not built: build it.*slower"):
            assert ops.amax(X, ops.WHOLE).item() == 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ops.amax(X, ops.WHOLE)
    monkeypatch.undo()
    assert getattr(backends.discover()["cpu"], "EXPECTED", False)


def test_the_folder_holds_backends_by_name_in_order_of_priority():
    found = backends.discover()
    priorities = [m.PRIORITY for m in found.values()]
    assert priorities == sorted(priorities, reverse=True)
    assert all(name == m.NAME for name, m in found.items())
    automatic = {n: m for n, m in found.items() if getattr(m, "AUTOMATIC", True)}
    assert [m.NAME for m in backends.usable()] == [n for n, m in automatic.items() if not m.available()]
    assert dispatch.REFERENCE not in found
