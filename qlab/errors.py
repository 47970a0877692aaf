"""The one error class that qlab raises on bad input."""


class QlabError(ValueError):
    """Bad input. The message is one line that names the thing and the remedy."""


class MissingExtraError(QlabError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed: "
            f'pip install "qlab[{extra}]"'
        )
