"""What an attack did."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """`faults` are what it should not have been able to do; `rows` are figures with their names."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note(self, what: str, value: str) -> None:
        """A figure."""
        self.rows.append((what, value))

    def expect(self, holds: bool, fault: str) -> None:
        """Something that must hold."""
        if not holds:
            self.faults.append(fault)
