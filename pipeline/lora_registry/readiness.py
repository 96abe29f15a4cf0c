"""Whether an upload is done: both files are there, and they are those of the marker file, if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from lora_registry import file_codes, source_codes
from lora_registry.adapter_files import check_files
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.errors import Deferred, Rejected
from lora_registry.findings import Finding, has_error
from lora_registry.ready_marker import MARKER_FILE, MAX_MARKER_BYTES, MarkerError, ReadyMarker, parse_marker
from lora_registry.sources import Listing, PinnedFile


@dataclass(frozen=True)
class Readiness:
    """When an upload counts as done.

    Attributes:
        deadline_s: how long after its event it may stay incomplete; 0: not at all.
        needs_marker: whether the marker file must be there.
    """

    deadline_s: float = 0.0
    needs_marker: bool = False

    def check(self, url: str, listing: Listing, read: Callable[[PinnedFile], bytes]) -> Mapping[str, PinnedFile]:
        """The adapter's two files, with the digests that the marker gives.

        Args:
            url: what a message calls the place.
            listing: what is there.
            read: reads a small file.

        Raises:
            Rejected: there is no adapter, or there is one that nothing will complete.
            Deferred: a part is missing that may still come.
        """
        files = listing.files
        findings = check_files(files)
        if has_error(findings):
            if any(finding.code != file_codes.FILE_MISSING.code for finding in findings):
                raise Rejected(f"{url} holds no adapter: {findings[0].message}", findings=tuple(findings))
            raise self.incomplete(url, findings, is_final=listing.is_final)
        found = {name: files[name] for name in (CONFIG_FILE, WEIGHTS_FILE)}
        marker = self._read_marker(url, listing, read)
        if marker is None:
            return found
        mismatches = [
            source_codes.MARKER_MISMATCH.finding(
                name, expected=f"{marker.files[name].size_bytes} bytes", actual=f"{file.size_bytes} bytes"
            )
            for name, file in found.items()
            if file.size_bytes != marker.files[name].size_bytes
        ]
        if mismatches:
            raise self.incomplete(url, mismatches, is_final=listing.is_final)
        return {name: replace(file, sha256=marker.files[name].sha256) for name, file in found.items()}

    def incomplete(self, url: str, findings: Iterable[Finding], *, is_final: bool = False) -> Rejected | Deferred:
        """What to raise about an upload that is not whole: it is deferred where it may still become so."""
        found = tuple(findings)
        message = f"{url} is not complete: {found[0].subject}: {found[0].message}"
        if is_final or not self.deadline_s:
            return Rejected(message, findings=found)
        return deferred(message, found, deadline_s=self.deadline_s)

    def _read_marker(self, url: str, listing: Listing, read: Callable[[PinnedFile], bytes]) -> ReadyMarker | None:
        file = listing.files.get(MARKER_FILE)
        if file is None:
            if self.needs_marker:
                missing = source_codes.MARKER_MISSING.finding(MARKER_FILE)
                raise self.incomplete(url, [missing], is_final=listing.is_final)
            return None
        try:
            if file.size_bytes > MAX_MARKER_BYTES:
                raise MarkerError(f"it has more than {MAX_MARKER_BYTES} bytes")
            return parse_marker(read(file))
        except MarkerError as error:
            finding = source_codes.MARKER_INVALID.finding(MARKER_FILE, actual=str(error)[:200])
            raise Rejected(f"{MARKER_FILE}: {error}", findings=(finding,)) from error


def deferred(message: str, findings: tuple[Finding, ...], *, deadline_s: float) -> Deferred:
    """A deferral whose rejection, if it comes to that, says that the time was up and what was missing."""
    late = source_codes.SOURCE_INCOMPLETE.finding(
        findings[0].subject, expected=f"complete within {deadline_s:g} s", actual=findings[0].message
    )
    return Deferred(message, findings=(*findings, late), deadline_s=deadline_s)


def check_digest(file: PinnedFile, sha256: str) -> None:
    """Compare what was read with what the marker said.

    Raises:
        Rejected: they differ.
    """
    if file.sha256 and file.sha256 != sha256:
        finding = source_codes.MARKER_MISMATCH.finding(file.name, expected=file.sha256, actual=sha256)
        raise Rejected(f"{file.name}: {finding.message}", findings=(finding,))
