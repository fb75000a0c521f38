"""JUnit XML: one test case for each gate and each check, for the tools that show test results."""

from collections.abc import Mapping
from xml.etree import ElementTree

from robustcv.errors import printable
from robustcv.records import Check, Gate, Record
from robustcv.report import numbers, summary


def junit(record: Record, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Write junit.xml: a failed gate is a failure; what cannot be told, or was not run, is skipped with its reason."""
    del files
    suite = ElementTree.Element("testsuite", name=f"robustcv {record.verb}")
    for gate in record.gates:
        _add_gate(suite, gate)
    for check in record.checks:
        _add_check(suite, check)
    cases = list(suite)
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    properties = ElementTree.Element("properties")
    suite.insert(0, properties)
    for name, value in (("verdict", record.verdict), ("exit_code", record.exit_code), ("version", record.version)):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(str(value)))
    out = ElementTree.SubElement(suite, "system-out")
    out.text = _clean(f"{record.verdict}: {summary.sentence(record)}")
    ElementTree.indent(suite)
    return {"junit.xml": b'<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, "utf-8") + b"\n"}


def _clean(text: str) -> str:
    return printable(text.replace(numbers.NBSP, " "))


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"robustcv.{group}", name=_clean(name))


def _add_gate(suite: ElementTree.Element, gate: Gate) -> None:
    word = "at least" if gate.kind == "floor" else "a drop of at most"
    case = _case(suite, "gate", f"{gate.name}: {word} {gate.threshold:g}")
    told = "not measured" if gate.value is None else f"{gate.value:.4f}"
    told += f", 95 % CI {gate.low:.4f} to {gate.high:.4f}" if gate.low is not None and gate.high is not None else ""
    if gate.outcome == "failed":
        ElementTree.SubElement(case, "failure", message=_clean(told))
    elif gate.outcome == "across":
        ElementTree.SubElement(case, "skipped", message=_clean(f"inconclusive: {told}"))
    ElementTree.SubElement(case, "system-out").text = _clean(told)


def _add_check(suite: ElementTree.Element, check: Check) -> None:
    case = _case(suite, "check", check.check)
    if check.status != "pass":
        reason = "raised" if check.status == "raised" else "not run"
        ElementTree.SubElement(case, "skipped", message=_clean(f"{reason}: {check.figure}"))
    text = check.figure + (f" Next: {check.fix}" if check.fix else "")
    ElementTree.SubElement(case, "system-out").text = _clean(text)
