"""A model card in the form of the Hugging Face Hub, with the measured figures as a model index."""

import json
from collections.abc import Mapping
from typing import Any

from robustcv.errors import printable
from robustcv.records import Metric, Record
from robustcv.report import numbers, summary
from robustcv.report.formats.markdown import markdown, plain

MORE = "[More Information Needed]"


def card(record: Record, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Write model_card.md: what was measured is filled in, what a tool cannot know is marked as missing."""
    head = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "robustness", "robustcv"],
        "model-index": [{"name": printable(summary.name_of(record)), "results": _results(record)}],
    }
    text = markdown(record, files)["summary.md"].decode()
    data = record.data
    trained = record.training
    told = f"{plain(data.name)}, {plain(data.split)}, {data.n:,} of {data.total:,} images" if data else MORE
    trained_on = trained.options.get("data") if trained else None
    made = f"{trained.objective}, {trained.epochs[-1].epoch} epochs" if trained and trained.epochs else MORE
    body = f"""
# {plain(summary.name_of(record))}

## Model details

- parameters: {record.model.parameters if record.model else MORE}
- SHA-256 of the weights: {plain(record.model.sha256) if record.model else MORE}
- training: {plain(made)}

## Intended use

{MORE}

## Factors

{MORE}

## Metrics

Clean accuracy; robust accuracy as the worst case per image over the attacks named, at each eps; each with its interval.

## Training data

{plain(str(trained_on)) if trained_on else MORE}

## Evaluation data

{told}

## Quantitative analyses

{text.replace("### ", "#### ").replace("## ", "### ", 1)}
## Ethical considerations

{MORE}

## Caveats

Robust accuracy is an upper bound: the attacks listed in the report were run, others were not.
"""
    front = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())  # JSON is YAML
    return {"model_card.md": f"---\n{front}\n---\n{body}".encode()}


def _results(record: Record) -> list[dict[str, Any]]:
    if record.data is None:
        return []
    metrics = []
    for metric in record.metrics:
        if metric.count is None or metric.attack is not None:
            continue
        args = {"n": metric.n, "ci_low": metric.low, "ci_high": metric.high, "method": metric.method}
        metrics.append(
            {"type": "accuracy", "value": metric.count / metric.n, "name": _name(record, metric), "args": args}
        )
    name = printable(record.data.name)
    data = {"name": name, "type": name, "split": printable(record.data.split), "revision": record.data.sha256}
    source = {"name": f"robustcv {printable(record.version)}", "url": "report.html"}
    task = {"type": "image-classification"}
    return [{"task": task, "dataset": data, "metrics": metrics, "source": source}] if metrics else []


def _name(record: Record, metric: Metric) -> str:
    label = metric.name.replace("_", " ").capitalize()
    if metric.eps is None:
        return label
    attacks = list(dict.fromkeys(each.name for each in record.attacks if each.reason == "plan"))
    where = numbers.threat(metric.eps, metric.norm or "linf")
    how = f"worst of {', '.join(attacks)}" if metric.bound == "upper" else "proved"
    return f"{label} ({where}, {how}, n={metric.n:,})"
