"""What the owners of open things have in common: `with` closes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """Something that is closed when its ``with`` block ends."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; closing twice is no error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
