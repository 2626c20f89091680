"""How a node becomes part of a domain: it makes its key, and asks the API for a certificate.

The key never leaves the node; what it asked for and got is kept in the node's private directory, so
that a restart needs no server.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass

from bedstone.errors import UnavailableError, VerificationError, from_code
from bedstone.node.config import NodeConfig
from bedstone.node.http import request
from bedstone.trust.spiffe import node_id
from bedstone.trust.svid import Svid, certificate_request, new_key, write_private

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """The domain that the node is part of, and `HOST:PORT` of its server for sessions and ADS.

    `run_id` is the supervisor's run in which it was told: an embedded server of another run has
    another address.
    """

    domain: str
    session: str
    run_id: str = ""


def load_membership(config: NodeConfig) -> tuple[Membership, Svid] | None:
    """What an earlier join gave; None if there is none."""
    try:
        value = json.loads((config.private / "membership.json").read_text())
        membership = Membership(**value)
    except (OSError, ValueError, TypeError):
        return None
    svid = Svid.load(config.private / "identity.json")
    if svid is None or svid.spiffe_id != node_id(membership.domain, config.name):
        return None
    return membership, svid


async def join(
    config: NodeConfig, run_id: str, domain: str | None = None
) -> tuple[Membership, Svid]:
    """Join, and keep the outcome.

    Args:
        config: the node's.
        run_id: the supervisor's run, kept with the outcome.
        domain: the trust domain if it is known; the server says it otherwise.

    Raises:
        UnavailableError: the API does not answer; try again.
        DeniedError: it refuses this node.
        VerificationError: what it gave is not for this node.
    """
    headers = [("content-type", "application/json")]
    if config.token_file is not None:
        headers.append(("authorization", f"Bearer {config.token_file.read_text().strip()}"))
    key = new_key()
    # The server alone decides the id; the one asked for is confirmed below.
    wanted = node_id(domain or "unknown", config.name)
    body = {"request": certificate_request(key, wanted), "address": config.address}
    answer = await request(
        config.api,
        "POST",
        f"/v1/nodes/{config.name}/join",
        headers=headers,
        body=json.dumps(body).encode(),
        ca_file=config.ca_file,
        timeout=10.0,
    )
    try:
        value = json.loads(answer.body)
    except ValueError as error:
        raise UnavailableError(f"the API answered {answer.status}, not with JSON") from error
    if answer.status >= 400:
        detail = value.get("error", value)
        raise from_code(
            str(detail.get("code", "unavailable")),
            f"the server refuses the node: {detail.get('message', answer.status)}",
            hint=detail.get("hint"),
        )
    try:
        membership = Membership(value["domain"], value["session"], run_id)
        chain, bundle = value["chain"], value["bundle"]
    except KeyError as error:
        raise VerificationError(f"the API's answer lacks {error}") from error
    svid = Svid(node_id(membership.domain, config.name), key, chain, bundle, time.time())
    svid.verify()
    try:
        svid.save(config.private / "identity.json")
        write_private(config.private / "membership.json", json.dumps(asdict(membership)))
    except OSError as error:
        # It is a member all the same; only the next agent will have to join again.
        _log.error("cannot write", extra={"reason": str(error)})
    return membership, svid
