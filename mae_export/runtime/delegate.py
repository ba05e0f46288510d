"""What a session that wraps another takes from it unchanged."""

from __future__ import annotations

from mae_export.manifest import Manifest
from mae_export.runtime.session import Session


class Delegate:
    """Tells of the session inside; a subclass says what it does differently.

    Args:
        session: does the work.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def name(self) -> str:
        """File name of the model."""
        return self._session.name

    @property
    def manifest(self) -> Manifest:
        """What the model promises."""
        return self._session.manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes."""
        return self._session.digest

    @property
    def description(self) -> str:
        """What runs it and where."""
        return self._session.description
