"""Descriptions of bodies that the endpoints read themselves, for /docs and generated clients."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

BINARY = {"type": "string", "format": "binary"}

ERROR = {
    "description": "OpenAI's error object; `param` names the field at fault.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {
                            name: {"type": ["string", "null"]}
                            for name in ("message", "type", "param", "code")
                        },
                    }
                },
            }
        }
    },
}


def request_body(content: Mapping[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of an endpoint whose body is one of several media types, name -> schema."""
    described = {name: {"schema": schema} for name, schema in content.items()}
    return {"requestBody": {"required": True, "content": described}}


def json_body(schema: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of an endpoint that reads one JSON object."""
    return request_body({"application/json": schema.model_json_schema()})


def multipart_schema(
    fields: type[BaseModel] | None,
    files: Mapping[str, Any],
    optional: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Schema of a multipart body: text fields beside files, which are required, and others."""
    schema: dict[str, Any] = {"type": "object"} if fields is None else fields.model_json_schema()
    schema["properties"] = {**files, **(optional or {}), **schema.get("properties", {})}
    schema["required"] = [*files, *schema.get("required", [])]
    return schema


def answers(content: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """`responses` of an endpoint: its media types beside JSON, and the shape of every error."""
    described = {name: {"schema": schema} for name, schema in content.items()}
    return {200: {"content": described}, "default": ERROR}
