"""The auditor: what would bend a number, found in a manifest and in a seeded sample of its pixels."""

from dlprobe.data.audit.auditing import SAMPLE, audit
from dlprobe.data.audit.verdict import Verdict, background_verdict

__all__ = ["SAMPLE", "Verdict", "audit", "background_verdict"]
