"""Remote-write for tests: reads what is sent, with protobuf itself and not with our own codec."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Final

import cramjam
import httpx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bedstone.telemetry.frames import Labels

STALE: Final = 0x7FF0_0000_0000_0002
_F: Final = descriptor_pb2.FieldDescriptorProto


def _write_request() -> Any:
    """`prometheus.WriteRequest`, as far as it is used (prompb/remote.proto, types.proto)."""
    file = descriptor_pb2.FileDescriptorProto(name="remote.proto", package="p", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field_name, number, kind, of in fields:
            repeated = _F.LABEL_REPEATED if of else _F.LABEL_OPTIONAL
            made.field.add(
                name=field_name, number=number, type=kind, label=repeated,
                type_name=f".p.{of}" if of else None,
            )  # fmt: skip

    message("Label", ("name", 1, _F.TYPE_STRING, ""), ("value", 2, _F.TYPE_STRING, ""))
    message("Sample", ("value", 1, _F.TYPE_DOUBLE, ""), ("timestamp", 2, _F.TYPE_INT64, ""))
    message(
        "TimeSeries",
        ("labels", 1, _F.TYPE_MESSAGE, "Label"),
        ("samples", 2, _F.TYPE_MESSAGE, "Sample"),
    )
    message("WriteRequest", ("timeseries", 1, _F.TYPE_MESSAGE, "TimeSeries"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.WriteRequest"))


_WriteRequest: Final = _write_request()


def decoded(content: bytes) -> list[tuple[Labels, list[tuple[int, float | None]]]]:
    """Series with their samples: seconds and values, None for a stale marker."""
    request = _WriteRequest()
    request.ParseFromString(bytes(cramjam.snappy.decompress_raw(content)))
    found = []
    for series in request.timeseries:
        labels = tuple((label.name, label.value) for label in series.labels)
        samples = [(sample.timestamp / 1000, sample.value) for sample in series.samples]
        found.append((labels, [(int(at), _value(value)) for at, value in samples]))
    return found


def _value(value: float) -> float | None:
    return None if struct.unpack("<Q", struct.pack("<d", value))[0] == STALE else value


@dataclass
class Receiver:
    """A target in memory, which refuses as it is told, and what it has already, as Prometheus.

    Attributes:
        answers: status and headers of the next requests; what follows is taken.
        samples: what was taken, by series and second.
        requests: what was asked.
    """

    answers: list[httpx.Response | httpx.TransportError] = field(default_factory=list)
    samples: dict[Labels, dict[int, float | None]] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)

    def client(self) -> httpx.AsyncClient:
        """What speaks to it."""
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, httpx.TransportError):
                raise answer
            if not answer.is_success:
                return answer
        found = decoded(request.content)
        for labels, samples in found:
            newest = max(self.samples.get(labels, {}), default=0)
            if any(at < newest for at, _ in samples):
                return httpx.Response(400, text="out of order sample")
        for labels, samples in found:
            self.samples.setdefault(labels, {}).update(samples)
        return httpx.Response(204)
