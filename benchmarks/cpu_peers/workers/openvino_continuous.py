"""OpenVINO GenAI, continuous batching: its paged attention and scheduler, in one process."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from benchmarks.cpu_peers.workers.channel import Answer, Request, parse, serve

PRECISIONS = {"bfloat16": "bf16", "float32": "f32"}
CACHE_GB = 2
MAX_BATCHED_TOKENS = 1024


def _start() -> tuple[str, Callable[[list[Request]], list[Answer]]]:
    args = parse()
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = MAX_BATCHED_TOKENS
    scheduler.max_num_seqs = 64
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    precision = PRECISIONS[args.dtype]
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(Path(args.model) / "openvino"),
        scheduler,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,  # it would be 8 bits otherwise
            "INFERENCE_NUM_THREADS": args.threads,
        },
    )
    num_seen = 0

    def answer(requests: list[Request]) -> list[Answer]:
        nonlocal num_seen
        began = time.perf_counter()
        handles = []
        for each in requests:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = each.num_tokens
            config.ignore_eos = True
            config.do_sample = False
            prompt = openvino.Tensor(np.array([each.prompt_ids], np.int64))
            handles.append(pipeline.add_request(num_seen, prompt, config))
            num_seen += 1
        times: list[list[float]] = [[] for _ in requests]
        tokens: list[list[int]] = [[] for _ in requests]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter() - began
            for index, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        tokens[index] += output.generated_ids
                        times[index].append(now)
        return [Answer(t[0], t[-1], ids) for t, ids in zip(times, tokens, strict=True)]

    return openvino_genai.__version__, answer


if __name__ == "__main__":
    serve(_start)
