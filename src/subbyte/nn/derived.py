"""Classes that are made at run time, each for one model: how fuse_ and an integer-only network change its forward."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Derived(nn.Module):
    """Mixin, first of the bases, of a class that stands in for a module's own, `original`, until that is given back.

    No name leads pickle to such a class. So a module is pickled with its mixin and its original class, from which it
    gets a class again: torch.save(model) works, and so does a model that goes to another process. copy.deepcopy keeps
    the class, with what it holds.
    """

    prefix: ClassVar[str]
    original: ClassVar[type[nn.Module]]
    reference: ClassVar[_Reference]

    @classmethod
    def derive(cls, original: type[nn.Module], **namespace: Any) -> type[Any]:
        """The class of a module of class `original` that runs as this mixin says."""
        namespace |= {"original": original, "__module__": original.__module__}
        derived = type(f"{cls.prefix}{original.__name__}", (cls, original), namespace)
        derived.reference = _Reference(derived, cls)  # type: ignore[attr-defined]
        return derived

    def give_back(self) -> None:
        """Make the module one of its original class again, in place."""
        self.__class__ = type(self).original  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        how = super().__reduce_ex__(protocol)
        if isinstance(how, str) or not how[1] or how[1][0] is not type(self):  # the original class's own way
            return how
        return _Reference.instance, (self.reference,), *how[2:]


class _Reference:
    """A derived class as pickle and copy find it."""

    def __init__(self, derived: type[Derived], mixin: type[Derived]) -> None:
        self.derived, self.mixin = derived, mixin

    def instance(self) -> Any:
        """A module of the class, still without what it holds."""
        return self.derived.__new__(self.derived)

    def __deepcopy__(self, _memo: dict) -> _Reference:
        return self

    def __reduce__(self) -> Any:
        return _derived_again, (self.mixin, self.derived.original)


def _derived_again(mixin: type[Derived], original: type[nn.Module]) -> _Reference:
    return mixin.derive(original).reference
