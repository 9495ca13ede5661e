"""The pages of ``openrlhf view``, made from run folders: served one by one, or all in one file.

What users and models wrote is escaped by Jinja2; what a script reads stands in JSON that holds no ``<``. The page's
content policy allows its own script alone, so that even a mistake here runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from openrlhf.inspect.charts import Curve, chart, curve, number
from openrlhf.inspect.diagnose import diagnose
from openrlhf.inspect.evidence import gather_evidence, length, mean_of
from openrlhf.inspect.flags import engine_gap, flags
from openrlhf.inspect.run_folder import read_flags, read_metrics, steps_of, stored
from openrlhf.training.bands import BANDS, band_shown
from openrlhf.training.log import SCREEN
from openrlhf.training.metric_names import EVALUATED, METRICS
from openrlhf.training.sample_file import TOKEN_FIELDS, StoredSample, StoredStep, read_step, step_path
from openrlhf.training.samples import FOLDER

PAGE = Path(__file__).with_name("page")
Link = Callable[..., str | None]  # kind of page, numbers → where it is, None where it is not


def served_link(kind: str, *numbers: int) -> str:
    return "/" if kind == "overview" else "/".join(["", kind, *map(str, numbers)])


@dataclass(frozen=True)
class Pages:
    """One run, or two beside each other."""

    runs: Sequence[Path]
    link: Link = served_link

    def overview(self) -> str:
        return self._page("overview", self._overview())

    def step(self, run: int, step: int) -> str:
        """Raises ValueError when the step has no samples."""
        return self._page(f"step {step}", self._step(run, step))

    def sample(self, run: int, step: int, row: int) -> str:
        """Raises ValueError when there is no such sample."""
        found = self._stored(run, step)
        samples = [sample for sample in found.samples if sample.row == row]
        if not samples:
            raise ValueError(f"step {step} has no stored sample {row}.")
        return self._page(f"sample {step}:{row}", self._sample(run, found, samples[0]))

    def prompt(self, prompt_id: int) -> str:
        return self._page(f"prompt {prompt_id}", self._prompt(prompt_id, [steps_of(run) for run in self.runs]))

    def export(self, steps: Sequence[int] | None = None) -> str:
        """Everything in one page: the overview, and of ``steps`` (the first and the last stored one) all samples.

        Raises ValueError when no run has stored one of ``steps``.
        """
        there = {step for run in self.runs for step in steps_of(run)}
        if absent := [str(step) for step in steps or () if step not in there]:
            stored_ones = f"{len(there)} steps from {min(there)} to {max(there)}" if there else "no step"
            raise ValueError(f"--steps {' '.join(absent)}: samples are stored of {stored_ones}, not of these.")
        chosen = [self._exported_steps(run, steps) for run in self.runs]
        found = [(run, stored(self.runs[run], step)) for run, numbers in enumerate(chosen) for step in numbers]
        prompts = dict.fromkeys(sample.prompt_id for _, step in found for sample in step.samples)
        made = {
            "overview",
            *(f"step-{run}-{step.step}" for run, step in found),
            *(f"sample-{run}-{step.step}-{sample.row}" for run, step in found for sample in step.samples),
            *(f"prompt-{prompt}" for prompt in prompts),
        }

        def link(kind: str, *numbers: int) -> str | None:
            name = "-".join([kind, *map(str, numbers)])
            return f"#{name}" if name in made else None

        pages = replace(self, link=link)
        parts = [pages._overview()]
        for run, step in found:
            parts.append(pages._step(run, step.step))
            parts += [pages._sample(run, step, sample) for sample in step.samples]
        parts += [pages._prompt(prompt, chosen) for prompt in prompts]
        return pages._page("exported", Markup("").join(parts))

    def anchor(self, text: object, kind: str, *numbers: int, css: str = "") -> Markup:
        """A link to another page, or the text alone where that is not there."""
        place = self.link(kind, *numbers)
        return escape(text) if place is None else Markup('<a href="{}" class="{}">{}</a>').format(place, css, text)

    def state(self) -> list[list[float]]:
        """What changes while a run goes on: its last logged and its last stored step."""
        return [[lines[-1]["step"] if lines else 0, *steps_of(run)[-1:]] for run, lines in self._metrics()]

    def _stored(self, run: int, step: int) -> StoredStep:
        if run >= len(self.runs):
            raise ValueError(f"there is no run {run} here, only {len(self.runs)}.")
        return stored(self.runs[run], step)

    def _metrics(self) -> Iterator[tuple[Path, list[dict[str, float]]]]:
        return ((run, read_metrics(run)) for run in self.runs)

    def _exported_steps(self, run: Path, steps: Sequence[int] | None) -> list[int]:
        there = steps_of(run)
        return list(dict.fromkeys([*there[:1], *there[-1:]])) if steps is None else [s for s in steps if s in there]

    def _page(self, title: str, body: Markup) -> str:
        names = [str(run) for run in self.runs]
        script, style = (_text(PAGE / name) for name in ("page.js", "page.css"))
        return (
            _environment()
            .get_template("page.html")
            .render(
                title=f"{title} – {names[0]}",
                names=names,
                body=body,
                home=self.link("overview"),
                live=self.link is served_link,
                script=Markup(script),
                style=Markup(style),
                script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            )
        )

    def _part(self, template: str, **given: Any) -> Markup:
        return Markup(_environment().get_template(template).render(a=self.anchor, runs=len(self.runs), **given))

    def _overview(self) -> Markup:
        lines = [lines for _, lines in self._metrics()]
        evidence = [gather_evidence(run) for run in self.runs]
        names = dict.fromkeys(name for each in lines for line in each for name in line if name != "step")
        order = [*(name for name in SCREEN if name in names), *(name for name in METRICS if name in names), *names]
        return self._part(
            "overview.html",
            charts=[_chart(name, [curve(each, name) for each in lines]) for name in dict.fromkeys(order)],
            diagnoses=[diagnose(each) for each in evidence],
            steps=[steps_of(run) for run in self.runs],
            differences=_differences([read_flags(run) for run in self.runs]),
            state=self.state(),
        )

    def _step(self, run: int, step: int) -> Markup:
        found = self._stored(run, step)
        flagged, there = flags(found), steps_of(self.runs[run])
        return self._part(
            "step.html",
            run=run,
            step=found,
            rows=[_row(found, sample, flagged.get(sample.row, [])) for sample in found.samples],
            parts=list(found.samples[0].parts) if len(found.samples[0].parts) > 1 else [],
            extras=sorted({name for sample in found.samples for name in sample.extras}),
            others=[other for other, each in enumerate(self.runs) if other != run and step in steps_of(each)],
            before=max((s for s in there if s < step), default=None),
            after=min((s for s in there if s > step), default=None),
        )

    def _sample(self, run: int, step: StoredStep, sample: StoredSample) -> Markup:
        fields = token_fields(sample)
        return self._part(
            "sample.html",
            run=run,
            step=step,
            sample=sample,
            row=_row(step, sample, flags(step).get(sample.row, [])),
            tokens=[
                (step.vocabulary.get(token, "�"), chosen)
                for token, chosen in zip(sample.tokens.tolist(), sample.action_mask.tolist(), strict=True)
            ],
            meanings={name: FIELD_NAMES.get(name, name) for name in fields},
            data={"ids": sample.tokens.tolist(), "fields": fields, "names": FIELD_NAMES},
        )

    def _prompt(self, prompt_id: int, steps: Sequence[Sequence[int]]) -> Markup:
        found = []
        for run, numbers in zip(self.runs, steps, strict=True):
            read = [read_step(step_path(run / FOLDER, number), prompt_id) for number in numbers]
            found.append([(step, [_row(step, sample, []) for sample in step.samples]) for step in read if step.samples])
        return self._part("prompt.html", prompt_id=prompt_id, found=found)


FIELD_NAMES = {
    "advantages": "advantage",
    "gap": "engine − trainer",
    "log_probs": "log-prob, trainer",
    "engine_log_probs": "log-prob, engine",
    "ref_log_probs": "log-prob, reference",
    "kl": "KL",
    "values": "value",
    "returns": "return",
    "loss": "loss",
    "value_loss": "value loss",
}


def token_fields(sample: StoredSample) -> dict[str, list[float | None]]:
    """Per-token numbers of a sample, to four digits; None outside the action mask and where it is no number."""
    columns = {name: sample.per_token[name] for name in TOKEN_FIELDS if name in sample.per_token}
    if engine_gap(sample) is not None:
        columns["gap"] = columns["engine_log_probs"] - columns["log_probs"]
    mask = sample.action_mask.tolist()
    return {
        name: [
            float(f"{value:.4g}") if chosen and math.isfinite(value) else None
            for value, chosen in zip(columns[name].tolist(), mask, strict=True)
        ]
        for name in FIELD_NAMES
        if name in columns
    }


def _row(step: StoredStep, sample: StoredSample, reasons: list[str]) -> dict[str, Any]:
    """A sample as a line of a table."""
    return {
        "name": step.name_of(sample),
        "row": sample.row,
        "prompt_id": sample.prompt_id,
        "source": sample.source,
        "label": sample.label,
        "turns": sample.turns,
        "reward": sample.reward,
        "outcome": sample.outcome,
        "score": sample.score,
        "parts": sample.parts,
        "extras": sample.extras,
        "length": length(sample),
        "truncated": sample.truncated,
        "weight_version": sample.weight_version,
        "advantage": mean_of(sample, "advantages"),
        "kl": mean_of(sample, "kl"),
        "reasons": reasons,
    }


def _chart(name: str, curves: Sequence[Curve]) -> dict[str, Any]:
    band = BANDS.get(name)
    lasts = [points[-1][1] if points else None for points in curves]
    seen = [band.verdict(value) for value in lasts if band is not None and value is not None]
    worst = next((verdict for verdict in ("red", "watch", "healthy") if verdict in seen), "")
    return {
        "name": name,
        "meaning": METRICS.get(name.removeprefix(EVALUATED), ""),
        "picture": chart(curves, band),
        "lasts": lasts,
        "verdict": worst,
        "band": "" if band is None else f"healthy: {band_shown(band.healthy)}; red flag: {band.meaning}",
    }


def _differences(flags: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The flags that are not the same in both runs."""
    names = sorted({name for each in flags for name in each})
    values = [(name, [each.get(name) for each in flags]) for name in names]
    return [(name, given) for name, given in values if any(value != given[0] for value in given)]


def _shown(value: Any) -> str:
    """A number for a table; nothing where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return number(value) if isinstance(value, float | int) and not isinstance(value, bool) else str(value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shown
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the order of the columns is meant
    return environment


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
