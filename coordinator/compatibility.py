"""Whether a node or gateway fits the deployment that the first member defined. Pure.

Every difference is told with both values and what to do about it.
"""

from dataclasses import dataclass

from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.membership import NodeHello

ADVICE = {
    "served_name": "give every process the same --served-model-name",
    "weights_fingerprint": "start every process with the same model folder",
    "tokenizer_fingerprint": "copy the same tokenizer files to every model folder",
    "dtype": "give every node the same --dtype",
    "max_model_len": "give every node the same --max-model-len",
    "vocab_size": "start every process with the same model folder",
}
# A gateway loads no weights, so it cannot know dtype and context length of the nodes.
KNOWN_TO_GATEWAYS = ("served_name", "weights_fingerprint", "tokenizer_fingerprint", "vocab_size")

# Generous bounds of what a node may claim in its hello.
MAX_PAGES = 2**28
MAX_SEQUENCES = 2**20
MAX_BATCHED_TOKENS = 2**26
MAX_PAGE_SIZE = 4096
MAX_PAGE_BYTES = 2**34
MAX_WEIGHT = 1000


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is served. `founder` names the member that defined it; `layout` None: no node yet."""

    founder: str
    model: ModelIdentity
    layout: KVLayout | None


def explain_model_difference(
    deployment: Deployment, name: str, model: ModelIdentity, fields: tuple[str, ...]
) -> str | None:
    """All differing fields with both values and advice; None where the models agree."""
    found = []
    for field in fields:
        theirs, ours = getattr(model, field), getattr(deployment.model, field)
        if theirs != ours:
            found.append(
                f"{field} is {theirs} in {name} and {ours} in {deployment.founder} "
                f"({ADVICE[field]})"
            )
    if not found:
        return None
    return f"{name} does not fit this deployment: {'; '.join(found)}"


def explain_gateway_difference(
    deployment: Deployment, name: str, model: ModelIdentity
) -> str | None:
    """Why a gateway cannot serve this deployment, or None."""
    return explain_model_difference(deployment, name, model, KNOWN_TO_GATEWAYS)


def explain_node_difference(deployment: Deployment, hello: NodeHello) -> str | None:
    """Why a node cannot join this deployment, or None."""
    fields = KNOWN_TO_GATEWAYS if deployment.layout is None else tuple(ADVICE)
    difference = explain_model_difference(deployment, hello.node_id, hello.model, fields)
    if difference is not None or deployment.layout is None:
        return difference
    layouts = hello.layout.explain_difference(deployment.layout)
    if layouts is None:
        return None
    return (
        f"{hello.node_id} does not fit this deployment: {layouts} (here: {hello.node_id}, there: "
        f"{deployment.founder}); give every node the same --page-size, --dtype and model"
    )


def explain_unusable(hello: NodeHello) -> str | None:
    """Why a node could serve nobody, or claims what no machine has; None where it is fine.

    Later arithmetic relies on sizes above 0, and a size beyond belief would attract all requests.
    """
    sizes = {
        "num_pages": (hello.num_pages, MAX_PAGES),
        "max_num_seqs": (hello.max_num_seqs, MAX_SEQUENCES),
        "max_num_batched_tokens": (hello.max_num_batched_tokens, MAX_BATCHED_TOKENS),
        "page_size": (hello.layout.page_size, MAX_PAGE_SIZE),
        "page_bytes": (hello.layout.page_bytes, MAX_PAGE_BYTES),
        "a role weight": (max(hello.weights.prefill, hello.weights.decode), MAX_WEIGHT),
    }
    empty = [name for name, (size, _) in sizes.items() if size <= 0]
    if empty:
        return f"{hello.node_id} can serve nobody: {', '.join(empty)} must be above 0"
    absurd = [
        f"{name} {size:g} (at most {most:g})" for name, (size, most) in sizes.items() if size > most
    ]
    if absurd:
        return f"{hello.node_id} claims more than any machine has: {', '.join(absurd)}"
    return None
