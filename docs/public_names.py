"""For mkdocstrings: `from anabranch.experts.expert_ffn import expert_ffn` means the function, as where Python runs.

Read without importing, a name that is both a submodule and what a package's __init__ imports from it would be the
submodule, and the function would be missing from the reference.
"""

from __future__ import annotations

from typing import Any

import griffe


class PublicNames(griffe.Extension):
    """Puts the function or class in the place of the submodule of the same name, wherever `__all__` has that name."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for package in (pkg, *pkg.modules.values()):
            for name in map(str, package.exports or ()):
                module = package.members.get(name)
                if (
                    module is not None
                    and module.is_module
                    and name in module.members
                    and not module.members[name].is_module
                ):
                    package.set_member(name, griffe.Alias(name, module.members[name], parent=package))
