"""Publishers of the official Python SDK, in one process and on one clock.

Reads a plan, one line of JSON, from standard input:

    url, api_key, api_secret, room
    queue_ms        the audio queue of every source; 0 hands each 10 ms to libwebrtc as it comes
    participants    a list of
        identity, attributes
        join        when it joins; null: before the start
        leave       when it leaves
        publish     spans [from, to] in which its microphone is published; null: always
        mute        spans [from, to] in which it is muted
        sounds      a list of {file, at}: what it says: raw samples, 16 bit, little endian, 48 kHz, mono
        dtx         whether the encoder may stop sending in silence
        red         whether it sends redundant audio
        video       whether it publishes a camera, too
        e2ee_key    the passphrase with which it encrypts from end to end; null: it does not
        e2ee_own_key  whether that is its own instead of the room's
        ratchet     times at which it turns to the next key

Times are seconds from the common start. The start is a second line on standard input, `go`; those who join before it
are in the room and send silence by then ("ready"). Every 10 ms one tick gives each source its next frame, so that a
sound's place in the call is `at`, for all sources alike. "done" tells how late the latest tick was.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from livekit import rtc
from shared import emit, token

RATE = 48_000
FRAME = RATE // 100
FRAME_NS = 10_000_000
SILENCE = bytes(2 * FRAME)
VIDEO_SIZE = (320, 180)
VIDEO_EVERY = 10


@dataclass
class Plan:
    url: str
    api_key: str
    api_secret: str
    room: str
    participants: list[dict]
    queue_ms: int = 0


class Clock:
    """Time since the common start."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.zero_ns = 0

    def start(self) -> None:
        self.zero_ns = time.monotonic_ns()
        self.running.set()

    async def until(self, seconds: float) -> None:
        await self.running.wait()
        await asyncio.sleep(max(0.0, seconds - (time.monotonic_ns() - self.zero_ns) / 1e9))


@dataclass
class Speaker:
    """One session of one participant."""

    plan: Plan
    identity: str
    leave: float
    join: float | None = None
    attributes: dict = field(default_factory=dict)
    publish: list | None = None
    mute: list = field(default_factory=list)
    sounds: list = field(default_factory=list)
    dtx: bool = True
    red: bool = True
    video: bool = False
    e2ee_key: str | None = None
    e2ee_own_key: bool = False
    ratchet: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = timeline(self.sounds)
        self.room = rtc.Room()
        self.source: rtc.AudioSource | None = None
        self.publication: rtc.LocalTrackPublication | None = None
        self.camera: rtc.VideoSource | None = None
        self.spoke = False

    async def enter(self) -> None:
        """Joins, and publishes what is published from the beginning."""
        plan = self.plan
        grants = {"roomJoin": True, "room": plan.room, "canPublish": True, "canSubscribe": True}
        jwt = token(plan.api_key, plan.api_secret, self.identity, grants, self.attributes)
        emit("connecting", identity=self.identity)
        await self.room.connect(plan.url, jwt, rtc.RoomOptions(auto_subscribe=False, encryption=self.encryption()))
        if self.e2ee_key is not None and self.e2ee_own_key:
            self.room.e2ee_manager.key_provider.set_key(self.identity, self.e2ee_key.encode(), 0)
        emit("connected", identity=self.identity)
        if self.video:
            await self.publish_camera()
        if self.publish is None:
            await self.publish_microphone()

    def encryption(self) -> rtc.E2EEOptions | None:
        if self.e2ee_key is None:
            return None
        shared = None if self.e2ee_own_key else self.e2ee_key.encode()
        return rtc.E2EEOptions(key_provider_options=rtc.KeyProviderOptions(shared_key=shared))

    async def ratchet_key(self) -> None:
        keys = self.room.e2ee_manager.key_provider
        if self.e2ee_own_key:
            keys.ratchet_key(self.identity, 0)
        else:
            keys.ratchet_shared_key(0)
        emit("ratcheted", identity=self.identity)

    async def live(self, clock: Clock) -> None:
        """Does what the plan says, each thing at its time, up to leaving."""
        if self.join is not None:
            await clock.until(self.join)
            await self.enter()
        for at, act in self.acts():
            await clock.until(at)
            await act()
        await clock.until(self.leave)
        self.source = None
        emit("leaving", identity=self.identity)
        await self.room.disconnect()
        emit("left", identity=self.identity)

    def acts(self) -> list[tuple[float, Callable[[], Awaitable[None]]]]:
        acts: list = []
        for start, end in self.publish or []:
            acts += [(start, self.publish_microphone), (end, self.unpublish_microphone)]
        for start, end in self.mute:
            acts += [(start, self.mute_microphone), (end, self.unmute_microphone)]
        acts += [(at, self.ratchet_key) for at in self.ratchet]
        return sorted((act for act in acts if act[0] < self.leave), key=lambda act: act[0])

    async def publish_camera(self) -> None:
        camera = rtc.VideoSource(*VIDEO_SIZE)
        track = rtc.LocalVideoTrack.create_video_track("camera", camera)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_CAMERA, simulcast=False)
        await self.room.local_participant.publish_track(track, options)
        self.camera = camera
        emit("video_published", identity=self.identity)

    async def publish_microphone(self) -> None:
        source = rtc.AudioSource(RATE, 1, queue_size_ms=self.plan.queue_ms)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=self.dtx, red=self.red)
        self.publication = await self.room.local_participant.publish_track(track, options)
        self.source = source
        emit("published", identity=self.identity, sid=self.publication.sid)

    async def unpublish_microphone(self) -> None:
        self.source = None
        emit("unpublishing", identity=self.identity)
        await self.room.local_participant.unpublish_track(self.publication.sid)

    async def mute_microphone(self) -> None:
        emit("muting", identity=self.identity)
        self.publication.track.mute()

    async def unmute_microphone(self) -> None:
        emit("unmuting", identity=self.identity)
        self.publication.track.unmute()

    async def speak(self, tick: int) -> None:
        """Hands the SDK the 10 ms of this tick; ticks before the start are negative, and silent."""
        if self.source is None:
            return
        data = self.samples[2 * FRAME * tick : 2 * FRAME * (tick + 1)] if tick >= 0 else b""
        if any(data) and not self.spoke:
            self.spoke = True
            emit("first_frame", identity=self.identity, at=tick / 100)
        await self.source.capture_frame(rtc.AudioFrame(data.ljust(2 * FRAME, b"\0"), RATE, 1, FRAME))

    def show(self, tick: int) -> None:
        """Gives the camera a picture now and then."""
        if self.camera is not None and tick % VIDEO_EVERY == 0:
            width, height = VIDEO_SIZE
            picture = bytes([tick % 256, 64, 128, 255]) * (width * height)
            self.camera.capture_frame(rtc.VideoFrame(width, height, rtc.VideoBufferType.RGBA, picture))


def timeline(sounds: list[dict]) -> bytes:
    """The sounds on one track, as 16 bit samples from the common start."""
    track = bytearray()
    for sound in sorted(sounds, key=lambda sound: sound["at"]):
        start = 2 * round(sound["at"] * RATE)
        if start < len(track):
            raise ValueError(f"{sound['file']} overlaps what is said before it")
        track.extend(bytes(start - len(track)))
        track.extend(Path(sound["file"]).read_bytes())
    return bytes(track)


async def main() -> None:
    lines = await stdin_lines()
    plan = Plan(**json.loads(await lines.readline()))
    speakers = [Speaker(plan=plan, **participant) for participant in plan.participants]
    clock = Clock()

    await asyncio.gather(*(speaker.enter() for speaker in speakers if speaker.join is None))
    silence = asyncio.create_task(tick(speakers, clock, until=clock.running.is_set, first=-(1 << 40)))
    emit("ready")
    if (await lines.readline()).strip() != b"go":
        raise RuntimeError("called off before the start")
    clock.start()
    emit("started")
    await silence

    lives = asyncio.gather(*(speaker.live(clock) for speaker in speakers))
    latest = await tick(speakers, clock, until=lives.done, first=0)
    await lives
    emit("done", latest_tick_ms=round(latest / 1e6, 2))


async def tick(speakers: list[Speaker], clock: Clock, until: Callable[[], bool], first: int) -> int:
    """Gives every source a frame each 10 ms, until `until`; returns how late the latest tick was, in nanoseconds."""
    base = clock.zero_ns if first == 0 else time.monotonic_ns()
    latest = 0
    beat = 0
    while not until():
        late = time.monotonic_ns() - (base + beat * FRAME_NS)
        if late < 0:
            await asyncio.sleep(-late / 1e9)
        latest = max(latest, late)
        await asyncio.gather(*(speaker.speak(first + beat) for speaker in speakers))
        for speaker in speakers:
            speaker.show(beat)
        beat += 1
    return latest


async def stdin_lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    asyncio.run(main())
