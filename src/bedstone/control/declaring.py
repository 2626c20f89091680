"""What an app is declared to be after an operator's change: pure, from one `App` to another.

Rules:
- A number to which a workload was scaled stands until a manifest declares another number of it.
- Rolling back restores a workload's declaration, not its replicas, and no source file: revisions
  run their source in place, so its digest stays what it is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bedstone.errors import ConflictError, InvalidError, NotFoundError
from bedstone.model.api import Change
from bedstone.model.diff import diff
from bedstone.model.resources import App, Declaration
from bedstone.model.spec import AppSpec, WorkloadSpec

FILE_WINS = (
    "the manifest's file was not changed: what it says takes effect again when it is applied, "
    "which `bedstone up` does as soon as it, or the source, is saved"
)
NO_SOURCE = "source files were not changed: every revision runs what is in its directory now"


def declared(
    before: App | None, name: str, spec: AppSpec, root: str, sources: Mapping[str, str]
) -> tuple[App, list[Change]]:
    """The app as a declaration makes it, and what that changes; its generation is one more."""
    lines = diff(
        before.spec if before else None,
        spec,
        before.sources if before else {},
        sources,
        before.scaled if before else {},
    )
    if before and before.root != root:
        lines.append(Change(op="~", subject="root", before=before.root, after=root))
    app = App(
        name=name,
        spec=spec,
        root=root,
        generation=before.generation + 1 if before else 1,
        sources=dict(sources),
        restarts=before.restarts if before else {},
        scaled=_still_scaled(before, spec) if before else {},
    )
    return app, lines


def _still_scaled(before: App, spec: AppSpec) -> dict[str, int]:
    def said(workloads: Mapping[str, WorkloadSpec], name: str) -> int | None:
        return workloads[name].replicas if name in workloads else None

    return {
        name: number
        for name, number in before.scaled.items()
        if name in spec.workloads
        and said(before.spec.workloads, name) == said(spec.workloads, name)
    }


def scaled(app: App, workload: str, replicas: int) -> tuple[App, Sequence[Change]]:
    """The app with another number of a workload's instances; no change where it has that number.

    Raises:
        NotFoundError: it has no such workload.
    """
    spec, held = known(app, workload), app.replicas(workload)
    if held == replicas:
        return app, ()
    others = {name: number for name, number in app.scaled.items() if name != workload}
    back = replicas == spec.replicas
    after = app.model_copy(update={"scaled": others if back else {**others, workload: replicas}})
    effect = "scales, as declared" if back else f"scales; the manifest says {spec.replicas}"
    line = Change(
        op="~",
        subject=f"workload {workload}: replicas",
        before=str(held),
        after=str(replicas),
        effect=effect,
    )
    return after, (line,)


def rolled_back(app: App, workload: str, to: Declaration) -> AppSpec:
    """The app's declaration with a workload as it was.

    Raises:
        NotFoundError: the workload is not in one of the two.
        InvalidError: it is declared so already.
        ConflictError: it uses what the app declares no more.
    """
    now, then = known(app, workload), to.spec.workloads.get(workload)
    if then is None:
        raise NotFoundError(
            f"generation {to.generation} of app {app.name} has no workload {workload}",
            hint="see bedstone changes",
        )
    if not differs(now, then):
        raise InvalidError(
            f"workload {workload} is declared as in generation {to.generation} already",
            hint="a roll-back restores the declaration; restore source files yourself",
        )
    there = {*app.spec.workloads, *app.spec.databases}
    missing = [name for name in then.uses if name not in there]
    if missing:
        raise ConflictError(
            f"generation {to.generation} of workload {workload} uses {', '.join(missing)}, "
            "which is not declared any more",
            hint=f"restore the whole app: bedstone undo {to.generation + 1}",
        )
    restored = then.model_copy(update={"replicas": now.replicas})
    workloads = {**app.spec.workloads, workload: restored}
    return app.spec.model_copy(update={"workloads": workloads})


def differs(now: WorkloadSpec, then: WorkloadSpec) -> bool:
    """Whether rolling back from one to the other would change anything."""
    return now != then.model_copy(update={"replicas": now.replicas})


def earlier(app: App, workload: str, history: Iterable[Declaration]) -> Declaration:
    """The latest declaration before the present one that declares a workload otherwise.

    Args:
        app: as it is now.
        workload: which.
        history: declarations, the latest first.

    Raises:
        NotFoundError: there is none.
    """
    now = known(app, workload)
    for declaration in history:
        then = declaration.spec.workloads.get(workload)
        if declaration.generation < app.generation and then is not None and differs(now, then):
            return declaration
    raise NotFoundError(
        f"no earlier declaration of workload {workload} that differs is kept",
        hint="see bedstone changes",
    )


def restored_sources(app: App, then: Declaration) -> dict[str, str]:
    """The source digests of an app that is declared as it was: those of now, where there are."""
    return {name: app.sources.get(name, then.sources.get(name, "")) for name in then.spec.workloads}


def known(app: App, workload: str) -> WorkloadSpec:
    """A workload's declaration.

    Raises:
        NotFoundError: there is none of that name.
    """
    spec = app.spec.workloads.get(workload)
    if spec is None:
        names = ", ".join(sorted(app.spec.workloads))
        raise NotFoundError(f"app {app.name} has no workload {workload}, it has {names}")
    return spec
