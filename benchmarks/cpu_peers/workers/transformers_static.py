"""transformers, one static batch: all rows run until the longest answer is complete."""

import time
from collections.abc import Callable

import torch
import transformers

from benchmarks.cpu_peers.workers.channel import Answer, Request, parse, serve


class _Clock:
    """A stopping criterion that stops nothing: it notes when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load(folder: str, dtype: str, num_threads: int) -> transformers.LlamaForCausalLM:
    """The model for greedy generation that no token ends."""
    torch.set_num_threads(num_threads)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def _start() -> tuple[str, Callable[[list[Request]], list[Answer]]]:
    args = parse()
    model = load(args.model, args.dtype, args.threads)

    def answer(requests: list[Request]) -> list[Answer]:
        clock = _Clock()
        began = time.perf_counter()
        prompts = torch.tensor([each.prompt_ids for each in requests])
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=max(each.num_tokens for each in requests),
            do_sample=False,
            stopping_criteria=[clock],
        )
        rows = output[:, prompts.shape[1] :].tolist()
        times = [each - began for each in clock.times]
        return [
            Answer(times[0], times[each.num_tokens - 1], row[: each.num_tokens])
            for row, each in zip(rows, requests, strict=True)
        ]

    return transformers.__version__, answer


if __name__ == "__main__":
    with torch.inference_mode():
        serve(_start)
