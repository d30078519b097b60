"""What `optkit lint` found as SARIF 2.1.0, which code hosts and editors show beside a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Data = Mapping[str, Any]

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(found: Iterable[tuple[Path, Data]], version: str) -> str:
    """SARIF of lint results, each with the file it is about; the same results give the same text.

    A model has no lines: a result stands at the file's first, with its node as logical location, and its fingerprint
    is of target, node and operator, so that it is the same one in the next run. What could not be looked at is a
    notification.
    """
    rules: dict[str, dict[str, Any]] = {}
    results: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for path, result in found:
        target = result["target"]
        for refusal in result["refused"]:
            operator = refusal["operator"] or "graph"
            rule = f"{target}/{operator}"
            rules.setdefault(rule, {
                "id": rule, "shortDescription": {"text": f"{target} refuses {refusal['operator'] or 'the graph'}"},
                "defaultConfiguration": {"level": "error"},
            })  # fmt: skip
            results.append(_result(rule, list(rules).index(rule), path, target, refusal))
        notes += [
            {"level": "warning", "message": {"text": f"not looked at for {target}: {text}"}}
            for text in result["unchecked"]
        ]
    driver = {"name": "optkit", "version": version, "rules": list(rules.values())}
    invocation = {"executionSuccessful": True, "toolExecutionNotifications": notes}
    run = {"tool": {"driver": driver}, "invocations": [invocation], "results": results}
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _result(rule: str, index: int, path: Path, target: str, refusal: Data) -> dict[str, Any]:
    node, module = refusal["node"] or "the graph", refusal["module"]
    text = f"{node}: {refusal['what']}" + (f" (module {module})" if module else "")
    text += f"\nTry: {refusal['hint']}" if refusal["hint"] else ""
    same = "\0".join([target, refusal["node"] or "", refusal["operator"] or "", refusal["what"]])
    logical = [{"name": name, "kind": kind} for name, kind in ((node, "element"), (module, "module")) if name]
    return {
        "ruleId": rule, "ruleIndex": index, "level": "error", "message": {"text": text},
        "locations": [{
            "physicalLocation": {"artifactLocation": {"uri": _uri(path)}, "region": {"startLine": 1}},
            "logicalLocations": logical,
        }],
        "partialFingerprints": {"refusal/v1": hashlib.sha256(same.encode(errors="replace")).hexdigest()},
    }  # fmt: skip


def _uri(path: Path) -> str:
    """A path below the working directory as a relative reference, any other as a file URI."""
    from urllib.parse import quote

    whole = path.resolve()
    try:
        return quote(whole.relative_to(Path.cwd().resolve()).as_posix())
    except ValueError:
        return whole.as_uri()
