"""MkDocs hook: the API pages are made from the source, so nothing is typed twice.

`<!-- api: generate -->` on a page becomes every public name of `kinema.generate`, of the packages in it and of the
modules it makes public: signature, docstring, public methods. A name is described once, where it first appears.
"""

import ast
import re

from docstrings import code, prose
from sources import Found, Function, defined, encoded, namespaces, public, tree

MARK = re.compile(r"<!-- api: (\w+) -->")
WIDE = 84  # characters of a signature that stay on one line
LONG = 40  # lines of a constant's value that are shown
FIELD = ("eqx.field", "field", "dataclasses.field")

Addresses = dict[Found, str]


def on_pre_build(config):
    tree.cache_clear()
    encoded.cache_clear()


def on_page_markdown(markdown, page, config, files):
    return MARK.sub(lambda match: stage(match[1]), markdown)


def stage(name: str) -> str:
    """All that is public in a stage, as Markdown."""
    spaces = {space: with_bases(name, public(space)) for space in namespaces(name)}
    addresses: Addresses = {}
    for space, names in spaces.items():
        for found in names:
            addresses.setdefault(found, f"{space}.{found.name}")
    links = {one.name: f"errors.md#kinema.errors.{one.name}" for one in public("kinema.errors")}
    links |= {found.name: f"#{address}" for found, address in reversed(addresses.items())}
    links = {word: address for word, address in links.items() if word[0].isupper()}  # others are names of arguments too
    parts = []
    for space, names in spaces.items():
        own = [found for found in names if addresses[found].rpartition(".")[0] == space]
        above = [f"[`{found.name}`](#{addresses[found]})" for found in names if found not in own]
        parts += [f"## `{space}` {{ #{space} }}", prose(ast.get_docstring(tree(space)) or "", links)]
        parts += [f"Described above: {', '.join(above)}."] if above else []
        parts += [entry(found, addresses, links) for found in own]
    return "\n\n".join(part for part in parts if part)


def with_bases(name: str, names: list[Found]) -> list[Found]:
    """The names and, before the first class that needs it, the interface of the stage that classes derive from."""
    complete = []
    for found in names:
        if isinstance(found.node, ast.ClassDef):
            complete += [
                base
                for base in found.bases
                if base not in names and base.module.startswith(f"kinema.{name}.") and not base.name.startswith("_")
            ]
        complete.append(found)
    return list(dict.fromkeys(complete))


def entry(found: Found, addresses: Addresses, links: dict[str, str]) -> str:
    """One public name."""
    address, node = addresses[found], found.node
    links = {word: at for word, at in links.items() if word != found.name}
    if isinstance(node, ast.ClassDef):
        shown = class_head(found)
    else:
        shown = signature(found) if isinstance(node, Function) else value(found)
    parts = [f"### `{found.name}` {{ #{address} }}", code(shown), prose(found.words, links)]
    if isinstance(node, ast.ClassDef):
        known = [f"[`{base.name}`](#{addresses[base]})" for base in found.bases if base in addresses and base.methods]
        parts += [f"Has all that {' and '.join(known)} has."] if known else []
        hidden = [base for base in found.bases if base not in addresses]
        methods: dict[str, Found] = {}
        for owner in [found, *hidden]:
            for method in owner.methods:
                methods.setdefault(method.name, method)
        for method in methods.values():
            if method.words:
                head = f"#### `{found.name}.{method.name}` {{ #{address}.{method.name.strip('_')} }}"
                parts += [head, code(signature(method)), prose(method.words, links)]
        plain = [signature(method) for method in methods.values() if not method.words]
        parts += ["**Also**", code("\n".join(plain))] if plain else []
    return "\n\n".join(part for part in parts if part)


def value(found: Found) -> str:
    """A constant as it is written, if it is not too long."""
    text = found.text()
    return text if len(text.splitlines()) <= LONG else f"{' = '.join(defined(found.node))} = ..."


def class_head(found: Found) -> str:
    """What the constructor takes; without one, the fields and the comments beside them."""
    for node in found.node.body:
        if isinstance(node, Function) and node.name == "__init__":
            return call(f"class {found.name}", arguments(Found(found.module, node))[1:])
    fields = []
    for node in found.node.body:
        if isinstance(node, ast.AnnAssign) and not defined(node)[0].startswith("_"):
            remark = found.remark(node)
            fields.append(f"    {field(found, node)}{'  ' if remark else ''}{remark}")
    bases = [found.text(base) for base in found.node.bases]
    head = call(f"class {found.name}", bases) if bases else f"class {found.name}"
    return "\n".join([f"{head}:", *fields]) if fields else head


def field(found: Found, node: ast.AnnAssign) -> str:
    """A field as annotation and default, whatever else is said of it."""
    shown, default = f"{found.text(node.target)}: {found.text(node.annotation)}", node.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) in FIELD:
        options = {option.arg: option.value for option in default.keywords}
        if "default_factory" in options:
            return f"{shown} = {found.text(options['default_factory'])}()"
        default = options.get("default")
    return shown if default is None else f"{shown} = {found.text(default)}"


def signature(found: Found) -> str:
    """A function or method as it is called; a property with its type."""
    node, taken = found.node, arguments(found)
    marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
    returns = "" if node.returns is None else found.text(node.returns)
    if marks & {"property", "cached_property"}:
        return f"{node.name}: {returns}" if returns else node.name
    if taken and taken[0] in ("self", "cls"):
        taken = taken[1:]
    kept = "".join(f"@{mark}\n" for mark in ("classmethod", "staticmethod", "abstractmethod") if mark in marks)
    return f"{kept}{call(node.name, taken)}{' -> ' if returns else ''}{returns}"


def arguments(found: Found) -> list[str]:
    """The arguments as they are written."""
    args = found.node.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    shown = [argument(found, arg, default) for arg, default in zip(positional, defaults)]
    if args.posonlyargs:
        shown.insert(len(args.posonlyargs), "/")
    if args.vararg:
        shown.append(f"*{argument(found, args.vararg)}")
    elif args.kwonlyargs:
        shown.append("*")
    shown += [argument(found, arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults)]
    return shown + ([f"**{argument(found, args.kwarg)}"] if args.kwarg else [])


def argument(found: Found, arg: ast.arg, default: ast.expr | None = None) -> str:
    shown = found.text(arg)
    if default is None:
        return shown
    return f"{shown} = {found.text(default)}" if arg.annotation else f"{shown}={found.text(default)}"


def call(name: str, taken: list[str]) -> str:
    """`name(taken)`, an argument a line where it would be too wide."""
    line = f"{name}({', '.join(taken)})"
    return line if len(line) <= WIDE else f"{name}(\n" + "".join(f"    {one},\n" for one in taken) + ")"
