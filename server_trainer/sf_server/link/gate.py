"""Who may speak under which name, and how much: what ingest asks before it looks further. No sockets, no clock."""

from __future__ import annotations

from typing import Final

from sf_contract.messages import Refusal, RefusalCode
from sf_server.ingest.admission import Session, judge_key, refusal
from sf_server.link.authorized import AuthorizedKeys
from sf_server.link.byte_rate import ByteRate
from sf_server.link.notices import Notices
from sf_server.link.router import Sender

MEGABYTE: Final = 1_000_000


class Gate:
    """Keys and rates of devices.

    Args:
        notices: takes lines about devices that were refused.
        authorized: which key may use which name; None when devices come in the clear, without keys.
        device_bytes_per_s: payload that each device may send, None: as much as it can.
    """

    def __init__(
        self, notices: Notices, *, authorized: AuthorizedKeys | None = None, device_bytes_per_s: float | None = None
    ) -> None:
        self._notices = notices
        self._authorized = authorized
        self._device_bytes_per_s = device_bytes_per_s
        self._rates: dict[str, ByteRate] = {}

    @property
    def limits_rates(self) -> bool:
        """True when credit may be withheld, and has to be granted later."""
        return self._device_bytes_per_s is not None

    def judge_name(self, sender: Sender, device: str) -> Refusal | None:
        """Refuse a device that calls itself what its key may not be called; None when it may, or nobody has keys."""
        if self._authorized is None:
            return None
        key_id = "none" if sender.key is None else sender.key.key_id
        refused = judge_key(self._authorized.names(sender.key), device=device, key_id=key_id)
        if refused is not None:
            where = f" from {sender.address}" if sender.address else ""
            self._notices.say_once((device, refused.code, key_id), f"{device}{where} is refused: {refused.detail}")
        return refused

    def judge_pace(self, session: Session, payload_bytes: int, *, now_s: float) -> Refusal | None:
        """Count what a device sent; refuse it when it did not wait for the credit it was promised."""
        rate = self._rate_of(session, now_s)
        early_s = 0.0 if rate is None else rate.charge(payload_bytes, now_s=now_s)
        if early_s == 0:
            return None
        return refusal(
            RefusalCode.OVER_CREDIT,
            f"{session.device} sends more than the {(self._device_bytes_per_s or 0) / MEGABYTE:g} MB per second it may",
            retry_after_s=early_s,
        )

    def credit_bytes(self, session: Session, most_bytes: int, *, now_s: float) -> int:
        """What a device may have in flight from now on, at most so much; 0: wait for a grant."""
        rate = self._rate_of(session, now_s)
        return most_bytes if rate is None else rate.credit_bytes(most_bytes, now_s=now_s)

    def forget_idle(self, *, now_s: float) -> None:
        """Drop what is remembered of devices that have not sent for a while."""
        self._rates = {device: rate for device, rate in self._rates.items() if not rate.is_full(now_s=now_s)}

    def _rate_of(self, session: Session, now_s: float) -> ByteRate | None:
        if self._device_bytes_per_s is None:
            return None
        if session.device not in self._rates:
            self._rates[session.device] = ByteRate(self._device_bytes_per_s, now_s=now_s)
        return self._rates[session.device]
