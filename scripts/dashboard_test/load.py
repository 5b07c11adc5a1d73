"""A steady load from the project's own client: prompts of many lengths, two SLA classes."""

import random
import threading
from types import TracebackType

from tandem.client import Client
from tandem.errors import TandemError
from tandem.sampling import SamplingParams

VOCABULARY = range(3, 4000)


class Load:
    """`rate` requests per second at exponential distances, until the block ends."""

    def __init__(self, address: str, *, rate: float, seed: int = 1) -> None:
        self._address = address
        self._rate = rate
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.num_done = 0
        self.num_refused = 0
        self.errors: list[str] = []

    def __enter__(self) -> "Load":
        thread = threading.Thread(target=self._send_all, name="load")
        self._threads.append(thread)
        thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _send_all(self) -> None:
        with Client(self._address) as client:
            running: list[threading.Thread] = []
            while not self._stop.wait(self._random.expovariate(self._rate)):
                thread = threading.Thread(target=self._send_one, args=(client, *self._shape()))
                thread.start()
                running = [*(t for t in running if t.is_alive()), thread]
            for thread in running:
                thread.join(30)

    def _shape(self) -> tuple[list[int], int, str]:
        num_prompt = min(900, int(self._random.lognormvariate(5.2, 0.6)) + 8)
        prompt = self._random.choices(VOCABULARY, k=num_prompt)
        num_output = min(90, int(self._random.lognormvariate(3.4, 0.5)) + 2)
        return prompt, num_output, self._random.choice(("interactive", "interactive", "standard"))

    def _send_one(self, client: Client, prompt: list[int], num_output: int, name: str) -> None:
        params = SamplingParams(max_tokens=num_output, temperature=0.0)
        try:
            stream = client.submit(prompt_ids=prompt, params=params, sla_class=name)
            for _ in stream:
                pass
            self.num_done += 1
        except TandemError as error:  # overload is shed, which is what the page shows
            self.num_refused += 1
            self.errors.append(str(error))
