"""What the mesh itself answers when there is no answer from a program.

Rules (DESIGN §7: errors by what the caller should do):
- a request that surely was not applied: 503, `x-bedstone-outcome: not-applied`;
- a request that may have been applied: 502, or 504 where time ran out, `x-bedstone-outcome:
  unknown`;
- a request that a policy refuses: 403.

The body is JSON with `code`, `message` and `hint`. Only answers of a proxy itself pass here; what
programs answer is left alone.
"""

from __future__ import annotations

from typing import Any

from bedstone.telemetry.context import OUTCOME

NOT_APPLIED = "not-applied"
UNKNOWN = "unknown"

# Envoy's response flags, by what they say of the request
_NEVER_SENT = ("UF", "UH", "UO", "NR", "NC")
_OUT_OF_TIME = ("UT", "SI", "DT", "UMSDR")
_CUT_SHORT = ("UC", "UR", "LR", "UPE")


def body(code: str, message: str, hint: str) -> dict[str, Any]:
    """A SubstitutionFormatString that yields the error as JSON."""
    return {
        "json_format": {"code": code, "message": message, "hint": hint},
        "content_type": "application/json",
    }


def _outcome(value: str) -> list[dict[str, Any]]:
    return [header(OUTCOME, value)]


def header(name: str, value: str, *, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> dict[str, Any]:
    """A HeaderValueOption."""
    return {"header": {"key": name, "value": value}, "append_action": action}


def _flags(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def status_is(status: int) -> dict[str, Any]:
    """An access log filter for answers with one status."""
    return {
        "status_code_filter": {
            "comparison": {
                "op": "EQ",
                "value": {"default_value": status, "runtime_key": "bedstone.unset"},
            }
        }
    }


def _not_applied() -> dict[str, Any]:
    return {
        "filter": _flags(*_NEVER_SENT),
        "status_code": {"value": 503},
        "headers_to_add": _outcome(NOT_APPLIED),
        "body_format_override": body(
            "unavailable",
            "the request did not reach an instance of the service",
            "nothing was applied: send it again later",
        ),
    }


def _timed_out() -> dict[str, Any]:
    return {
        "filter": _flags(*_OUT_OF_TIME),
        "status_code": {"value": 504},
        "headers_to_add": _outcome(UNKNOWN),
        "body_format_override": body(
            "unknown_outcome",
            "the deadline passed before the service answered; the request may have been applied",
            "find out whether it was applied before sending it again",
        ),
    }


def _unknown() -> dict[str, Any]:
    return {
        "filter": _flags(*_CUT_SHORT),
        "status_code": {"value": 502},
        "headers_to_add": _outcome(UNKNOWN),
        "body_format_override": body(
            "unknown_outcome",
            "the connection ended before the service answered; the request may have been applied",
            "find out whether it was applied before sending it again",
        ),
    }


def local_replies(*first: dict[str, Any]) -> dict[str, Any]:
    """A LocalReplyConfig; mappers in `first` take precedence."""
    return {"mappers": [*first, _timed_out(), _unknown(), _not_applied()]}


def forbidden(message: str, hint: str) -> dict[str, Any]:
    """A mapper for refusals by the RBAC filter."""
    return {"filter": status_is(403), "body_format_override": body("denied", message, hint)}


def proxy_credential(expected: str) -> dict[str, Any]:
    """A mapper: a refusal of a request without the expected credential is 407 (RFC 9110 §15.5.8).

    A request that has the credential and is refused for another reason keeps its 403.
    """
    return {
        "filter": {
            "and_filter": {
                "filters": [
                    status_is(403),
                    {
                        "header_filter": {
                            "header": {
                                "name": "proxy-authorization",
                                "string_match": {"exact": expected},
                                "invert_match": True,
                                "treat_missing_header_as_empty": True,
                            }
                        }
                    },
                ]
            }
        },
        "status_code": {"value": 407},
        "headers_to_add": [header("proxy-authenticate", 'Basic realm="bedstone"')],
        "body_format_override": body(
            "denied",
            "this proxy belongs to one instance, and the request lacks that instance's credential",
            "use the address in HTTP_PROXY as it is, with its user and password",
        ),
    }
