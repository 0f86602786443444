"""Public names and where they are defined, read from the source with `ast`: nothing of Kinema is imported."""

import ast
import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]
ALSO = {"generate": ["generate.noise", "generate.solver.grids"]}
"""Modules that users import by their own name and no `__all__` tells of."""

Function = ast.FunctionDef


@dataclass(frozen=True)
class Found:
    """Where a name is defined: the statement and the module it stands in."""

    module: str
    node: ast.stmt

    @property
    def name(self) -> str:
        return defined(self.node)[0]

    @property
    def words(self) -> str:
        """The docstring, or the string after a constant."""
        if isinstance(self.node, ast.FunctionDef | ast.ClassDef):
            return ast.get_docstring(self.node) or ""
        body = tree(self.module).body
        match body[body.index(self.node) + 1 :][:1]:
            case [ast.Expr(value=ast.Constant(value=str(words)))]:
                return inspect.cleandoc(words)
        return ""

    def text(self, node: ast.AST | None = None) -> str:
        """The source of a part of the statement on one line, or of all of it as it stands."""
        part = self.node if node is None else node
        first, last = part.lineno - 1, part.end_lineno - 1
        lines = encoded(self.module)[first : last + 1]
        lines[-1] = lines[-1][: part.end_col_offset]  # offsets count bytes
        lines[0] = lines[0][part.col_offset :]
        shown = b"\n".join(lines).decode()
        return shown if node is None else " ".join(shown.split())

    def remark(self, node: ast.AST) -> str:
        """The comment beside a part of the statement."""
        rest = encoded(self.module)[node.end_lineno - 1][node.end_col_offset :].decode().strip()
        return rest if rest.startswith("# ") else ""

    @property
    def bases(self) -> list["Found"]:
        """Classes of Kinema that a class derives from, nearest first."""
        near = []
        for base in self.node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base
            at = find(self.module, name.id) if isinstance(name, ast.Name) else None
            near += [at] if at and isinstance(at.node, ast.ClassDef) else []
        return list(dict.fromkeys([*near, *(far for base in near for far in base.bases)]))

    @property
    def methods(self) -> list["Found"]:
        """Public methods of a class; overrides without words of their own are left to the base they override."""
        above = {method.name for base in self.bases for method in base.methods}
        own = [Found(self.module, node) for node in self.node.body if isinstance(node, Function)]
        return [
            method
            for method in own
            if (not method.name.startswith("_") or method.name == "__call__")
            and (method.words or method.name not in above)
        ]


def namespaces(stage: str) -> list[str]:
    """A stage, its packages and its public modules, by full names."""
    name = f"kinema.{stage}"
    if where(name).name != "__init__.py":
        return [name]
    packages = [f"{name}.{file.parent.name}" for file in sorted(where(name).parent.glob("*/__init__.py"))]
    modules = [f"{name}.{one}" for one in exported(name) if is_module(name, one)]
    return list(dict.fromkeys([name, *packages, *modules, *(f"kinema.{one}" for one in ALSO.get(stage, []))]))


def public(module: str) -> list[Found]:
    """What a module makes public, modules left out: its `__all__`, or whatever it defines and describes.

    Raises:
        PluginError: a public name whose definition cannot be found.
    """
    names = exported(module)
    if not names:
        found = [Found(module, node) for node in tree(module).body if defined(node)]
        return [one for one in found if one.words and not one.name.startswith("_")]
    found = {one: find(module, one) for one in names if not is_module(module, one)}
    lost = [one for one, at in found.items() if at is None]
    if lost:
        raise PluginError(f"{module} makes {', '.join(lost)} public, but docs/api/sources.py finds no definition")
    return list(found.values())


def exported(module: str) -> list[str]:
    """What `__all__` or the table of `attach` lists."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and defined(node) == ["__all__"]:
            return ast.literal_eval(node.value)
    return sorted(one for home, names in table(module).items() for one in names or [home])


def table(module: str) -> dict[str, list[str]]:
    """{module: its public names} of a package that imports them when first used."""
    for node in tree(module).body:
        match node:
            case ast.Assign(value=ast.Call(func=ast.Name("attach"), args=[_, ast.Dict() as names])):
                return ast.literal_eval(names)
    return {}


def find(module: str, name: str) -> Found | None:
    """Where the name that a module has is defined, through all re-exports; None for names of other libraries."""
    for home, names in table(module).items():
        if name in names:
            return find(f"{module}.{home}", name)
    for node in reversed(tree(module).body):
        if name in defined(node):
            return Found(module, node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kinema."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return find(node.module, alias.name)
    return None


def defined(node: ast.stmt) -> list[str]:
    """Names that a statement defines."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def is_module(package: str, name: str) -> bool:
    """Whether a public name is a module and not, as `simulate.world`, something of the same name in it."""
    return where(f"{package}.{name}").exists() and find(package, name) is None


def where(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def encoded(module: str) -> list[bytes]:
    return where(module).read_bytes().splitlines()


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(where(module).read_bytes())
