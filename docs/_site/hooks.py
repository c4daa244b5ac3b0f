"""What the site has beyond the pages in docs/: a reference, reports, pages that lie elsewhere, equations as MathML."""

from __future__ import annotations

import dataclasses
import html
import importlib
import inspect
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gallery  # beside this file
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

ELSEWHERE = {
    "understand/backward.md": "src/steadynorm/ops/README.md",
    "understand/self_tuned.md": "src/steadynorm/statistics/README.md",
    "design/architecture.md": "ARCHITECTURE.md",
    "design/contributing.md": "CONTRIBUTING.md",
    "design/changelog.md": "CHANGELOG.md",
}
"""Page of the site -> file of the repository that it is made of."""

LAYERS = (
    *("BatchNorm", "BatchRenorm", "GatedBatchNorm", "GhostBatchNorm", "FrozenBatchNorm"),
    *("SyncBatchNorm", "MaskedBatchNorm1d"),
)
"""Of a kind that comes for one, two and three dimensions the two-dimensional one is shown."""

LAYER_TYPES = ("ops.reference.Activation", "layers.running.Nonfinite", "layers.state.Running")
FUNCTION_TYPES = (
    *("ops.dispatch.Backend", "ops.dispatch.Choice", "layers.warmup.Compiled", "layers.warmup.MemoryLayout"),
    *("statistics.ranks.Ranks", "statistics.ranks.ranks_of"),
)
SURGERY_TYPES = (
    *("surgery.named_modules.Where", "surgery.batches.Batch", "surgery.batches.Forward"),
    *("surgery.adapters.registry.Like", "surgery.adapters.registry.Tail"),
)
DOCTOR_TYPES = (
    *("doctor.score.Measure", "doctor.elsewhere.Ranks", "doctor.treat.Applied", "doctor.batch_evidence.Runs"),
    *("doctor.watch.watch.Policy", "doctor.watch.event.Event", "doctor.watch.event.WatchReport"),
)
"""What signatures name, and where it is defined."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of something else."""
    pages: dict[str, Callable[[], str]] = {
        **{page: (lambda path=path: (ROOT / path).read_text()) for page, path in ELSEWHERE.items()},
        "reference/index.md": _index,
        "reference/layers.md": _layers,
        "reference/functional.md": _functions,
        "reference/surgery.md": lambda: _module("Surgery", "steadynorm.surgery", types=SURGERY_TYPES),
        "reference/statistics.md": lambda: _module("Statistics", "steadynorm.statistics"),
        "reference/adaptation.md": lambda: _module("Adaptation", "steadynorm.adaptation"),
        "reference/doctor.md": lambda: _module(
            "Doctor and watch", "steadynorm.doctor", but=("CHECKS",), types=DOCTOR_TYPES
        ),
        "reference/integrations.md": _integrations,
        "reference/deploy.md": lambda: _module("Export", "steadynorm.deploy", but=("FORMATS",)),
        "reference/checks.md": _checks,
        "reference/commands.md": _commands,
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text()))
    for name, held in gallery.files():
        files.append(File.generated(config, f"gallery/{name}", content=held))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links into the repository lead to the page that shows the file, or be the file's name alone."""
    here = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    shown = {path: name for name, path in ELSEWHERE.items()} | {"README.md": "index.md"}

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        name = shown.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if name is None:
            return text if "`" in text else f"{text} (`{path}`)"
        return f"{match['image']}[{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri))}{anchor})"

    pattern = r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!\w+:|#)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
    return _outside_code(markdown, lambda text: re.sub(pattern, link, text))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Set equations as MathML, which browsers show without a script."""

    def inline(match: re.Match[str]) -> str:
        return convert(html.unescape(match[1]))

    def block(match: re.Match[str]) -> str:
        return f'<div class="equation">{convert(html.unescape(match[1]), display="block")}</div>'

    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', inline, content, flags=re.DOTALL)
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', block, content, flags=re.DOTALL)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change what is in no fence."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _module(title: str, name: str, *, but: tuple[str, ...] = (), types: tuple[str, ...] = ()) -> str:
    """Show all public names of a module, then the types that their signatures name."""
    module = importlib.import_module(name)
    names = [each for each in module.__all__ if each not in but and _is_documented(getattr(module, each))]
    shown = "\n\n".join(_object(f"{name}.{each}", getattr(module, each)) for each in names)
    return f"# {title}\n\n{_first_lines(module)}\n\n{shown}\n\n{_types(*types)}"


def _object(path: str, value: type[Any] | Callable[..., Any]) -> str:
    """Show a class or function; one that has the name of its module is found by where it is defined."""
    if value.__module__ != path:
        return f"::: {path}"
    name = path.rpartition(".")[2]
    return f"::: {path}.{name}\n    options: {{heading: {path}, toc_label: {name}}}"


def _types(*paths: str) -> str:
    shown = []
    for path in paths:
        name = path.rpartition(".")[2]
        shown.append(f"::: steadynorm.{path}\n    options: {{heading: {name}, toc_label: {name}}}")
    return "\n\n".join(["## Types" if shown else "", *shown])


def _is_documented(value: object) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


def _first_lines(module: ModuleType) -> str:
    """Give a module's docstring without its examples."""
    return (module.__doc__ or "").partition(">>>")[0].strip()


def _layers() -> str:
    import steadynorm

    shown = [name if hasattr(steadynorm, name) else f"{name}2d" for name in LAYERS]
    told = (
        "`1d`, `2d` and `3d` differ in the shapes that they take: (N, C) or (N, C, L), (N, C, H, W), (N, C, D, H, W). "
        "All take the arguments of `torch.nn.BatchNorm2d` in its order; ours are keyword-only and come last. "
        "[Which one when](../which_norm.md); [what each does in detail](../family.md)."
    )
    paths = [f"steadynorm.{name}" for name in shown]
    paths += ["steadynorm.layers.NormAddActivation", "steadynorm.layers.batch_norm_state"]
    layers = "\n\n".join(f"::: {path}" for path in paths)
    return f"# Layers\n\n{told}\n\n{layers}\n\n{_types(*LAYER_TYPES)}"


def _functions() -> str:
    functions = _module("Functions", "steadynorm.functional")
    backends = "\n\n".join(f"::: steadynorm.{name}" for name in ("backend", "explain_backend", "warmup"))
    return f"{functions}\n\n## Backends\n\n{backends}\n\n{_types(*FUNCTION_TYPES)}"


def _integrations() -> str:
    parts = ["# Integrations\n\nEach module imports its framework itself; [how they are used](../integrations.md)."]
    for title, name in (("Lightning", "lightning"), ("Hugging Face Trainer", "trainer")):
        module = f"steadynorm.integrations.{name}"
        parts += [f"## {title}", *(f"::: {module}.{each}" for each in _all_of(module))]
    return "\n\n".join([*parts, "## Loggers", "::: steadynorm.integrations.loggers.log"])


def _all_of(name: str) -> list[str]:
    """Read a module's public names without what it imports."""
    text = (ROOT / "src" / name.replace(".", "/") / "__init__.py").read_text()
    found = re.search(r"__all__ = \[(.*?)\]", text, flags=re.DOTALL)
    return re.findall(r'"(\w+)"', found[1]) if found else []


def _index() -> str:
    import steadynorm

    rows = "\n".join(
        f"| {_link(name, getattr(steadynorm, name))} | {inspect.getdoc(getattr(steadynorm, name)).splitlines()[0]} |"
        for name in steadynorm.__all__
        if _is_documented(getattr(steadynorm, name))
    )
    return f"# Reference\n\nWhat `import steadynorm` gives.\n\n| name | what it does |\n|---|---|\n{rows}\n"


def _link(name: str, value: type[Any] | Callable[..., Any]) -> str:
    """Link a name of the package to where the reference shows it, a layer to its two-dimensional form."""
    shown = re.sub(r"[13]d$", "2d", name) if name != "MaskedBatchNorm1d" else name
    return f'<autoref identifier="{value.__module__}.{shown}" optional><code>steadynorm.{name}</code></autoref>'


def _checks() -> str:
    from steadynorm.doctor import CHECKS

    told = "What `steadynorm doctor` looks for. `steadynorm doctor --explain NAME` prints the same."
    parts = [f"# The doctor's checks\n\n{told}"]
    for check in CHECKS.values():
        parts.append(f"#{check.explain()}")
    return "\n\n".join(parts)


def _commands() -> str:
    """Show every command as its help has it."""
    from steadynorm.cli import COMMANDS

    parts = ["# Commands\n\n`steadynorm COMMAND --help` prints the same."]
    for name, (flags, _) in COMMANDS.items():
        parts.append(
            f"## {name}\n\n{inspect.getdoc(flags)}\n\n| flag | default | |\n|---|---|---|\n" + "\n".join(_flags(flags))
        )
    return "\n\n".join(parts)


def _flags(flags: type[Any]) -> Iterator[str]:
    """Give a row for each flag."""
    from tyro._docstrings import get_field_docstring  # as help reads it

    for field in dataclasses.fields(flags):
        if field.name == "given":
            continue
        told = " ".join((get_field_docstring(flags, field.name, ()) or "").split()).replace("|", "\\|")
        default = field.default if field.default is not dataclasses.MISSING else "required"
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        code = "" if shown in (None, "") else f"`{shown}`"
        yield f"| `--{field.name.replace('_', '-')}` | {code} | {told} |"
