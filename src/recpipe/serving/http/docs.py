"""Page of the API at /docs: the OpenAPI description as plain HTML, without scripts and without external resources."""

from __future__ import annotations

import html
import json
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
section { border-top: 1px solid var(--line); padding: .5rem 0; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; border-radius: 6px; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
"""


def docs_page(openapi: dict[str, Any]) -> str:
    """Return the page for an OpenAPI description."""
    info = openapi["info"]
    sections = [
        _operation(method, path, operation, openapi)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info.get('description', ''))} "
        f'The same as JSON: <a href="openapi.json">openapi.json</a>.</p>{"".join(sections)}</html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any], openapi: dict[str, Any]) -> str:
    parts = [f"<section><h2><code>{method.upper()} {_text(path)}</code></h2>"]
    parts.append(f"<p>{_text(operation.get('description') or operation.get('summary', ''))}</p>")
    rows = [
        (parameter["name"], parameter.get("schema", {}), parameter.get("required", False))
        for parameter in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if body:
        schema = _resolve(body.get("schema", {}), openapi)
        needed = schema.get("required", ())
        rows += [(name, part, name in needed) for name, part in schema.get("properties", {}).items()]
    if rows:
        parts.append("<table><tr><th>field<th>type<th>default</tr>")
        for name, schema, required in rows:
            default = "required" if required else json.dumps(schema.get("default"))
            parts.append(f"<tr><td><code>{_text(name)}</code><td>{_text(_type(schema))}<td>{_text(default)}</tr>")
        parts.append("</table>")
    if "example" in body:
        parts.append(f"<pre>{_text(json.dumps(body['example'], indent=2))}</pre>")
    return "".join([*parts, "</section>"])


def _resolve(schema: dict[str, Any], openapi: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference to the components."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return openapi["components"]["schemas"][name] if name else schema


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _text(value: object) -> str:
    return html.escape(str(value))
