"""The coordinator's metrics under vLLM's names: per node where vLLM has an engine, else `all`."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric as Family

from coordinator.members import Members
from coordinator.pool_use import used_share
from tandem import metrics as m
from tandem import metrics_vllm as v
from tandem.exposition import Histogram, Tally, family, histogram_family

ALL = "all"


def vllm_families(members: Members, num_held: int, tally: Tally) -> Iterator[Family]:
    """Nothing while no node is known: the label `model_name` is theirs.

    Waiting are, at a node, requests without a turn to decode or with a prompt to compute.
    """
    if members.deployment is None:
        return
    model = members.deployment.model.served_name
    loads = {
        (model, name): record.load
        for name, record in members.nodes.items()
        if record.load is not None
    }
    yield family(v.RUNNING, {at: load.num_decode_running for at, load in loads.items()})
    waiting = {at: each.num_prefill_waiting + each.num_decode_waiting for at, each in loads.items()}
    waiting[model, ALL] = num_held
    yield family(v.WAITING, waiting)
    yield family(v.KV_USAGE, {at: used_share(load) for at, load in loads.items()})
    infos = {
        (model, name, str(record.hello.layout.page_size), str(record.hello.num_pages)): 1.0
        for name, record in members.nodes.items()
    }
    yield family(v.CACHE_CONFIG, infos)
    yield from _requests(model, tally)


def _requests(model: str, tally: Tally) -> Iterator[Family]:
    labels = (model, ALL)
    for metric, ours in ((v.PROMPT_TOKENS, m.PROMPT_TOKENS), (v.OUTPUT_TOKENS, m.OUTPUT_TOKENS)):
        yield family(metric, {labels: sum(tally.counts(ours).values())})
    ends: dict[tuple[str, ...], float] = {}
    for (_, reason), num in tally.counts(m.REQUESTS_ENDED).items():
        at = (*labels, v.FINISHED_REASONS[reason])
        ends[at] = ends.get(at, 0.0) + num
    yield family(v.SUCCESS, ends)
    for metric, ours in ((v.TTFT, m.TTFT), (v.E2E, m.E2E), (v.REQUEST_TPOT, m.TPOT)):
        summed = _sum(list(tally.histograms(ours).values()))
        yield histogram_family(metric, {} if summed is None else {labels: summed})


def _sum(histograms: list[Histogram]) -> Histogram | None:
    if not histograms:
        return None
    summed = Histogram(histograms[0].bounds)
    for each in histograms:
        summed.counts = [a + b for a, b in zip(summed.counts, each.counts, strict=True)]
        summed.total += each.total
    return summed
