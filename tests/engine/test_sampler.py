"""The sampler against transformers' logits processors, numpy, chi-square, and itself in batches."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.sampler import Sampler, sample_on_cpu, sample_on_device
from engine.sampler_cpu import adjust, top_tokens
from engine.sampler_reference import Draws, adjust_reference, draw_reference, filters_reference
from node.runner import Sampled, SampleRequest
from tandem.sampling import SamplingParams

VOCAB = 257


def request(
    seed: int = 1,
    index: int = 0,
    choice: int = 0,
    prompt: tuple[int, ...] = (),
    output: tuple[int, ...] = (),
    eos: tuple[int, ...] = (),
    **params: Any,
) -> SampleRequest:
    return SampleRequest(
        params=SamplingParams(**params),
        seed=seed,
        choice=choice,
        output_index=index,
        prompt_ids=np.array(prompt, np.int32),
        output_ids=np.array(output, np.int32),
        eos_token_ids=eos,
    )


def random_logits(num_rows: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab, generator=generator) * 3


def one(logits: torch.Tensor, wanted: SampleRequest) -> Sampled:
    return Sampler().sample(logits.unsqueeze(0), [wanted])[0]


def drawn_ids(logits: torch.Tensor, num_draws: int, **params: Any) -> list[int]:
    """Tokens of `num_draws` consecutive output indices over the same logits [V]."""
    requests = [request(seed=9, index=i, **params) for i in range(num_draws)]
    rows = logits.expand(num_draws, -1)
    return [sampled.token_id for sampled in Sampler().sample(rows, requests)]


VARIANTS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.3, "top_k": 7},
    {"top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.05},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 0.0, "repetition_penalty": 1.5, "logprobs": 3},
    {"logit_bias": {3: 5.0, 250: -100.0}, "logprobs": 0},
    {"min_tokens": 99, "stop_token_ids": (5, 6), "top_p": 0.5, "logprobs": 5},
]


def variant_requests() -> list[SampleRequest]:
    return [
        request(
            seed=2**63 + 17 * i,
            index=i,
            choice=i % 3,
            prompt=tuple(range(20, 60)),
            output=tuple(range(i, 2 * i)) * 2,
            eos=(1,),
            **params,
        )
        for i, params in enumerate(VARIANTS)
    ]


def test_greedy_takes_the_largest_and_of_equals_the_lowest_id() -> None:
    logits = random_logits(4)
    logits[1, [200, 13, 77]] = 50.0
    logits[2] = 0.0
    logits[3] = -1.0
    logits[3, 4], logits[3, 9] = -0.0, 0.0
    results = Sampler().sample(logits, [request(temperature=0.0)] * 4)
    assert [r.token_id for r in results] == [int(logits[0].argmax()), 13, 0, 4]
    assert all(r.logprob is None and r.top_logprobs == () for r in results)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_give_what_their_float32_values_give(dtype: torch.dtype) -> None:
    logits = random_logits(len(VARIANTS)).to(dtype)
    narrow = Sampler().sample(logits, variant_requests())
    if dtype != torch.float64:
        assert narrow == Sampler().sample(logits.float(), variant_requests())
    assert [r.error for r in narrow] == [None] * len(VARIANTS)


def test_the_largest_bfloat16_is_that_of_its_float32_values() -> None:
    """Over few values there are ties, both zeros and NaN of both signs; rows end within a block."""
    generator = torch.Generator().manual_seed(5)
    values = torch.tensor([0.0, -0.0, 1.5, -1.5, 3e38, torch.inf, -torch.inf, torch.nan])
    bits = torch.cat([values.bfloat16().view(torch.int16), torch.tensor([-0x40, 0x7F81, 1, -1])])
    num_errors = 0
    for num_kinds in (1, 2, 3, 5, 7, len(bits)):
        for vocab in (1, 1023, 1025, 3000):
            kinds = torch.randperm(len(bits), generator=generator)[:num_kinds]
            picked = kinds[torch.randint(num_kinds, (6, vocab), generator=generator)]
            logits = bits.short()[picked].view(torch.bfloat16)
            logits[:3] = (torch.randn(3, vocab, generator=generator) * 4).bfloat16()
            narrow = Sampler().sample(logits, [request(temperature=0.0)] * 6)
            assert narrow == Sampler().sample(logits.float(), [request(temperature=0.0)] * 6)
            num_errors += sum(r.error is not None for r in narrow)
    assert num_errors > 10


def test_a_row_is_the_same_bits_alone_in_a_batch_and_in_any_position() -> None:
    logits, requests = random_logits(len(VARIANTS), seed=3, vocab=1031), variant_requests()
    together = Sampler().sample(logits, requests)
    alone = [one(logits[i], wanted) for i, wanted in enumerate(requests)]
    assert together == alone
    generator = np.random.default_rng(0)
    for size in (2, 5, 16, 33):
        rows = generator.integers(0, len(VARIANTS), size)
        mixed = Sampler().sample(logits[rows], [requests[row] for row in rows])
        assert mixed == [alone[row] for row in rows]
    strided = torch.empty(len(VARIANTS), 2 * 1031 + 1)[:, 1:1032].copy_(logits)
    assert Sampler().sample(strided, requests) == alone


def test_device_path_equals_the_cpu_path() -> None:
    rows = random_logits(len(VARIANTS), seed=4).double()
    requests = variant_requests()
    assert sample_on_device(rows, requests) == sample_on_cpu(rows, requests)
    banned = request(min_tokens=1, stop_token_ids=tuple(range(VOCAB)))
    both = [sample(rows[:1], [banned])[0] for sample in (sample_on_device, sample_on_cpu)]
    assert both[0] == both[1]
    assert both[0].error is not None


def test_fast_path_equals_the_specification() -> None:
    for seed in range(20):
        logits = random_logits(1, seed=seed, vocab=600).double()
        logits[0, 100:120] = logits[0, 100]  # ties inside the filters
        for top_k, top_p, min_p in [(0, 1.0, 0.0), (9, 1.0, 0.0), (0, 0.7, 0.0), (50, 0.9, 0.1)]:
            draws = draws_of(0.9, top_k or 600, top_p, min_p, seed=seed, index=seed)
            params = {"temperature": 0.9, "top_k": top_k, "top_p": top_p, "min_p": min_p}
            wanted = request(seed=seed, index=seed, **params)
            assert one(logits[0], wanted).token_id == draw_reference(logits, draws).item()


def draws_of(
    temperature: float, top_k: int, top_p: float, min_p: float, seed: int = 0, index: int = 0
) -> Draws:
    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[value]], dtype=dtype)

    return Draws(
        temperature=column(temperature, torch.float64),
        top_k=column(top_k, torch.int64),
        top_p=column(top_p, torch.float64),
        log_min_p=column(math.log(min_p) if min_p else -math.inf, torch.float64),
        seed=column(seed, torch.int64),
        choice=column(0, torch.int64),
        index=column(index, torch.int64),
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 5, 1.0, 0.0),
        (0.7, 0, 0.9, 0.0),
        (1.7, 0, 0.35, 0.0),
        (1.0, 0, 1.0, 0.1),
        (0.8, 50, 0.95, 0.02),
        (1.5, 3, 0.2, 0.5),
    ],
)
def test_filters_keep_what_transformers_keeps(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for seed in range(10):
        logits = random_logits(1, seed=seed).double()
        theirs = TemperatureLogitsWarper(temperature)(ids, logits)
        if top_k:
            theirs = TopKLogitsWarper(top_k)(ids, theirs)
        theirs = TopPLogitsWarper(top_p)(ids, theirs)
        if min_p:
            theirs = MinPLogitsWarper(min_p)(ids, theirs)
        expected = set(torch.isfinite(theirs[0]).nonzero().flatten().tolist())
        values, order = ((logits - logits.max()) / temperature).sort(descending=True, stable=True)
        kept = filters_reference(values, draws_of(temperature, top_k or VOCAB, top_p, min_p))
        assert set(order[kept].tolist()) == expected
        params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        assert set(drawn_ids(logits[0], 50, **params)) <= expected


def test_penalties_bias_and_bans_equal_transformers_and_numpy() -> None:
    prompt, output = [3, 3, 8, 100], [8, 9, 9, 9]
    logits = random_logits(1).double()
    theirs = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([prompt + output]), logits.clone())
    ids = (np.array(prompt, np.int32), np.array(output, np.int32))
    assert np.array_equal(adjust(logits[0].numpy(), {}, [], *ids, 1.4, 0.0, 0.0), theirs[0])
    expected = logits[0].numpy().copy()
    expected[100] += 2.5
    expected[[7, 8]] = -np.inf
    for i in set(prompt + output):
        expected[i] = expected[i] / 1.4 if expected[i] > 0 else expected[i] * 1.4
    for i, count in Counter(output).items():
        expected[i] = expected[i] - 0.3 * count - 0.6
    ours = adjust(logits[0].numpy(), {100: 2.5}, [7, 8], *ids, 1.4, 0.6, 0.3)
    assert np.array_equal(ours, expected)
    tensors = (torch.tensor([7, 8]), torch.tensor(prompt), torch.tensor(output))
    reference = adjust_reference(logits[0], {100: 2.5}, *tensors, 1.4, 0.6, 0.3)
    assert np.array_equal(reference.numpy(), expected)


def test_ends_are_banned_until_min_tokens_exist() -> None:
    logits = torch.zeros(VOCAB)
    logits[[1, 5, 9]] = torch.tensor([30.0, 20.0, 10.0])
    params = {"temperature": 0.0, "min_tokens": 4, "stop_token_ids": (5,), "eos": (1,)}
    ids = [one(logits, request(index=i, **params)).token_id for i in (0, 3, 4, 5)]
    assert ids == [9, 9, 1, 1]


def test_ids_beyond_the_vocabulary_are_no_index() -> None:
    wanted = request(
        prompt=(-1, 9999, 2), output=(9999,), eos=(9999,), min_tokens=5, repetition_penalty=2.0
    )
    assert one(random_logits(1)[0], wanted).error is None


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = random_logits(1)[0]
    exact = torch.log_softmax(logits.double(), -1)
    params = {"temperature": 0.2, "repetition_penalty": 1.9, "logit_bias": {4: 30.0}}
    sampled = one(logits, request(prompt=(1, 2), logprobs=20, **params))
    assert sampled.logprob == pytest.approx(exact[sampled.token_id].item(), abs=1e-9)
    values, ids = exact.sort(descending=True, stable=True)
    assert [i for i, _ in sampled.top_logprobs] == ids[:20].tolist()
    found = [value for _, value in sampled.top_logprobs]
    assert found == pytest.approx(values[:20].tolist(), abs=1e-9)
    assert one(logits, request(logprobs=0)).top_logprobs == ()
    assert one(logits, request()).logprob is None


def test_top_tokens_break_ties_by_id_and_fit_small_vocabularies() -> None:
    assert top_tokens(np.array([1.0, 5.0, 5.0, 5.0, 2.0]), 2).tolist() == [1, 2]
    assert top_tokens(np.array([1.0, 5.0]), 20).tolist() == [1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_logits_fail_their_row_only(bad: float, temperature: float) -> None:
    logits = random_logits(3)
    logits[1, 100] = bad
    results = Sampler().sample(logits, [request(temperature=temperature)] * 3)
    assert results[1].error is not None
    assert "not numbers" in results[1].error
    assert [r.error for r in (results[0], results[2])] == [None, None]
    assert results[2] == one(logits[2], request(temperature=temperature))


def test_masked_tokens_are_never_drawn_and_all_masked_is_an_error() -> None:
    logits = torch.full((VOCAB,), -math.inf)
    assert one(logits, request()).error is not None
    logits[[3, 4]] = 1.0
    assert set(drawn_ids(logits, 100, top_k=50, top_p=0.99, min_p=0.01)) == {3, 4}
    assert set(drawn_ids(logits, 100)) == {3, 4}
    banned = one(torch.zeros(2), request(min_tokens=1, stop_token_ids=(0, 1)))
    assert banned.error is not None
    assert "relax" in banned.error


def test_a_tiny_temperature_is_greedy_and_overflows_nothing() -> None:
    logits = random_logits(1)[0]
    ids = {one(logits, request(seed=s, temperature=1e-300)).token_id for s in range(10)}
    assert ids == {int(logits.argmax())}


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.5}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}]
)
def test_drawn_frequencies_follow_the_filtered_distribution(params: dict[str, Any]) -> None:
    num_draws = 4000
    logits = random_logits(1, seed=5, vocab=12)[0].double() / 2
    values, order = (logits / params.get("temperature", 1.0)).sort(descending=True)
    draws = draws_of(
        1.0, params.get("top_k", 12), params.get("top_p", 1.0), params.get("min_p", 0.0)
    )
    kept = filters_reference((values - values[0]).unsqueeze(0), draws)[0]
    probabilities = torch.softmax(values.masked_fill(~kept, -torch.inf), -1)[kept].numpy()
    counts = Counter(drawn_ids(logits, num_draws, **params))
    assert counts.keys() <= set(order[kept].tolist())
    observed = np.array([counts[i] for i in order[kept].tolist()])
    expected = probabilities * num_draws
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_seed_choice_and_index_each_change_the_draw_and_nothing_else_does() -> None:
    logits = torch.zeros(4096)
    base = one(logits, request()).token_id
    assert one(logits, request(prompt=(1, 2), output=(5,))).token_id == base
    others = [
        one(logits, request(seed=2)),
        one(logits, request(seed=1 + 2**40)),
        one(logits, request(choice=1)),
        one(logits, request(index=1)),
    ]
    assert len({base, *(sampled.token_id for sampled in others)}) == 5
