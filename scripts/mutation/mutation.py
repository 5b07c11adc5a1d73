"""One guard and how it is taken away: an exact snippet and what stands there instead."""

import ast
from dataclasses import dataclass
from pathlib import Path


class Moved(ValueError):
    """The code is not what the table says; the text says where to look."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """See the module. `promise` is what the guard keeps, `tests` are arguments for pytest.

    `equivalent` says why no test can notice, where another guard keeps the same promise.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str | None = None

    def apply(self, source: str) -> str:
        """The file without the guard. Raises Moved where the snippet is not there just once."""
        num_found = source.count(self.old)
        if num_found != 1:
            raise Moved(
                f"{self.name}: {self.file} has its snippet {num_found} times, not once; the code "
                f"moved, so mend scripts/mutation: {self.old!r}"
            )
        mutated = source.replace(self.old, self.new)
        try:
            ast.parse(mutated)
        except SyntaxError as error:
            raise Moved(f"{self.name}: {self.file} does not parse without it: {error}") from None
        return mutated

    def without(self, root: Path) -> str:
        """The text of the file below `root` without the guard."""
        return self.apply((root / self.file).read_text())
