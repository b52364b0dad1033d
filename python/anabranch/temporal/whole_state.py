"""`WholeState`: modules whose saved state is loaded all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.core.arguments import dtype_name


class WholeState(nn.Module):
    """A module that loads a saved state all or nothing; base of all here that keep a state, and of models made of them.

    torch copies one tensor after the other and raises in the end, so that a memory may keep the mailbox of another
    stream. Here the saved state is compared with the whole subtree before anything is copied. Its state are the buffers
    (and the extra state) of every WholeState in the subtree, sizes, dtypes and settings of which must be the module's.

    `load_state_dict(...)` of a WholeState raises RuntimeError, in torch's form, for all that does not fit and with
    `strict=True` for every missing or unexpected key too. Nothing has been loaded then. With `strict=False` parameters
    may be missing, and so may the state, but not a part of it. With `assign=True` the saved tensors become the state:
    they must be contiguous and on the module's device, unless that is meta.

    Within an nn.Module that is none, torch shows each submodule its own part of the saved state and not whether it is
    strict. So each outermost WholeState there is loaded all or nothing, a misfit raises at once, and what torch loaded
    before it stays. Derive the model from WholeState where that is not enough.

    Left to torch are submodules that load in ways of their own (BatchNorm, lazy modules, those with a
    `load_state_dict` pre-hook), besides WholeStates: hooks of those run after the comparison.
    """

    def state_problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        """Why `given` is no state of this module, each reason with the name it begins with.

        `given` is what was saved under names relative to this module; its own buffers and extra state are all there.
        """
        for name, own in _saved(self._buffers, self):
            if problem := _problem_of(given[name], own, self.state_shape(name, given), own.dtype):
                yield f"{name} {problem}"

    def state_shape(self, name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape that a saved buffer must have; that of the module's, unless a state of other sizes can be taken."""
        return tuple(getattr(self, name).shape)

    def make_room_for(self, given: Mapping[str, Any]) -> None:
        """Called with a state that fits, just before it is copied."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, all or nothing; see the class."""
        if isinstance(state_dict, Mapping):  # else torch raises TypeError
            found = _compare(self, state_dict, "", assign)
            _raise_any(self, found.keys + found.problems if strict else found.problems + found.part)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        found = _compare(self, state_dict, prefix, assign)
        _raise_any(self, found.problems + found.part)
        buffers = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        if buffers:
            self.make_room_for(buffers)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class _Differences(NamedTuple):
    """Messages: of missing and unexpected keys, of a state that is there in part, and of what does not fit."""

    keys: list[str]
    part: list[str]
    problems: list[str]


def _compare(root: nn.Module, given: Mapping[str, Any], prefix: str, assign: bool) -> _Differences:
    problems = [f"{key!r} is of type {type(key).__name__}, must be a str." for key in given if not isinstance(key, str)]
    given = {key: value for key, value in given.items() if isinstance(key, str)}
    known: list[str] = []
    state: list[str] = []
    foreign: tuple[str, ...] = ()
    for path, module in root.named_modules(remove_duplicate=False):
        at = f"{prefix}{path}." if path else prefix
        if at.startswith(foreign):
            continue
        is_whole = isinstance(module, WholeState)
        if not is_whole and _loads_in_its_own_way(module):
            foreign += (at,)
            continue
        buffers, parameters = dict(_saved(module._buffers, module)), dict(_saved(module._parameters, module))
        extra = ["_extra_state"] if type(module).set_extra_state is not nn.Module.set_extra_state else []
        known += [at + name for name in (*parameters, *buffers, *extra)]
        for name, own in (parameters if is_whole else {**parameters, **buffers}).items():
            if at + name in given and (problem := _problem_of(given[at + name], own)):
                problems.append(f"{at}{name} {problem}.")
        if not isinstance(module, WholeState):
            continue
        names = [at + name for name in (*buffers, *extra)]
        state += names
        if all(name in given for name in names):
            part = {key[len(at) :]: value for key, value in given.items() if key.startswith(at)}
            found = list(module.state_problems(part)) or (list(_unassignable(part, buffers)) if assign else [])
            problems += [f"{at}{problem}." for problem in found]
    return _Differences(*_differences_of_keys(given, known, state, foreign), problems)


def _differences_of_keys(
    given: Mapping[str, Any], known: list[str], state: list[str], foreign: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    all_known = set(known)
    missing = [key for key in known if key not in given]
    unexpected = [key for key in given if key not in all_known and not key.startswith(foreign)]
    listed = (("Missing", missing), ("Unexpected", unexpected))
    keys = [f"{kind} key(s) in state_dict: " + ", ".join(f'"{key}"' for key in some) for kind, some in listed if some]
    lost = [key for key in state if key not in given]
    if not 0 < len(lost) < len(state):
        return keys, []
    return keys, [f"{', '.join(lost)} of the state missing, must be there; load all of a state, or nothing of it."]


def _loads_in_its_own_way(module: nn.Module) -> bool:
    own = type(module)._load_from_state_dict is not nn.Module._load_from_state_dict
    return own or len(module._load_state_dict_pre_hooks) > 0


def _saved(tensors: Mapping[str, Tensor | None], module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def _problem_of(given: Any, own: Tensor, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> str:
    """Why a saved value cannot become that of a tensor; nothing where it can. Of any dtype where none is named."""
    if not isinstance(given, Tensor):
        return f"is of type {type(given).__name__}, must be a tensor; load what state_dict() gave"
    if given.layout != own.layout or (given.is_meta and not own.is_meta):
        return f"is {given.layout} on {given.device}, must be {own.layout} with values; load what state_dict() gave"
    shape = tuple(own.shape) if shape is None else shape
    # torch takes one number for none where a parameter has no dimension.
    fits = tuple(given.shape) == shape or (dtype is None and shape == () and given.shape == (1,))
    if fits and dtype in (None, given.dtype):
        return ""
    wanted = f"{dtype_name(own.dtype)} of shape {shape}"
    return f"is {described(given)}, must be {wanted}; make the module with the sizes of the saved one"


def _unassignable(given: Mapping[str, Any], buffers: Mapping[str, Tensor]) -> Iterator[str]:
    for name, own in buffers.items():
        tensor = given[name]
        if not own.is_meta and tensor.device != own.device:
            yield f"{name} is on {tensor.device}, must be on {own.device} to be assigned; move one of them"
        elif not tensor.is_contiguous():
            yield f"{name} is not contiguous, must be to be assigned; load it without assign=True"


def _raise_any(module: nn.Module, problems: list[str]) -> None:
    if problems:
        listed = "\n\t".join(problems)
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n\t{listed}")


def described(tensor: Tensor) -> str:
    """A tensor in a message: "int64 of shape (3,)", with its values where these are few."""
    few = 0 < tensor.numel() <= 3 and not tensor.is_meta and tensor.layout == torch.strided
    return f"{dtype_name(tensor.dtype)}{f' {tensor.tolist()}' if few else ''} of shape {tuple(tensor.shape)}"


def has_values(tensor: Tensor) -> bool:
    """Whether there is anything to look at: some numbers, and not only their shape."""
    return tensor.numel() > 0 and not tensor.is_meta


def largest_id(given: Mapping[str, Any], name: str, column: int | None = None) -> int:
    """The largest of saved ids, int64 and of one column where that is named; -1 where there are none to look at."""
    ids = given.get(name)
    if not isinstance(ids, Tensor) or ids.layout != torch.strided or ids.dtype != torch.int64 or not has_values(ids):
        return -1
    if column is not None:
        ids = ids[:, column : column + 1] if ids.dim() == 2 else ids[:0]
    return int(ids.max()) if ids.numel() > 0 else -1
