"""transformers, continuous batching: its paged cache and its scheduler, in one process."""

import time
from collections.abc import Callable
from contextlib import ExitStack

import transformers

from benchmarks.cpu_peers.workers.channel import Answer, Request, parse, serve
from benchmarks.cpu_peers.workers.transformers_static import load

NUM_BLOCKS = 128  # of 256 tokens each
MAX_BATCH_TOKENS = 1024
NO_TOKEN = -1
RESULT_S = 120.0


def _start(stack: ExitStack) -> tuple[str, Callable[[list[Request]], list[Answer]]]:
    args = parse()
    model = load(args.model, args.dtype, args.threads)
    manager = stack.enter_context(
        model.continuous_batching_context_manager(
            generation_config=transformers.GenerationConfig(
                do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0, max_new_tokens=256
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                num_blocks=NUM_BLOCKS,
                max_batch_tokens=MAX_BATCH_TOKENS,
                allow_block_sharing=False,
            ),
            timeout=5.0,
        )
    )

    def answer(requests: list[Request]) -> list[Answer]:
        began = time.perf_counter()
        for index, each in enumerate(requests):
            manager.add_request(
                each.prompt_ids,
                request_id=str(index),
                max_new_tokens=each.num_tokens,
                record_timestamps=True,
                eos_token_id=NO_TOKEN,
            )
        answers: dict[str, Answer] = {}
        while len(answers) < len(requests):
            result = manager.get_result(timeout=RESULT_S)
            if result is None or result.error:
                raise RuntimeError(f"no answer: {result and result.error}")
            if result.is_finished():
                times = [each - began for each in result.timestamps]
                answers[result.request_id] = Answer(times[0], times[-1], result.generated_tokens)
        return [answers[str(index)] for index in range(len(requests))]

    return transformers.__version__, answer


if __name__ == "__main__":
    with ExitStack() as stack:
        serve(lambda: _start(stack))
