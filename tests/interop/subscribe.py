"""A subscriber of the official Python SDK: how long from connecting to the first audio?

Reads a plan, one line of JSON, from standard input: url, api_key, api_secret, room, identity. Prints "connecting",
"connected", "subscribed" (the track is there), "first_packet" (the SDK's statistics count one), "first_sound" (the
first frame that is not digital silence), then leaves.
"""

import asyncio
import json
import sys

from livekit import rtc
from shared import emit, token

POLL_SECONDS = 0.005


async def main() -> None:
    plan = json.loads(sys.stdin.readline())
    room = rtc.Room()
    subscribed: asyncio.Future = asyncio.get_running_loop().create_future()

    @room.on("track_subscribed")
    def on_track(track: rtc.RemoteTrack, _publication: object, participant: rtc.RemoteParticipant) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO and not subscribed.done():
            emit("subscribed", identity=participant.identity)
            subscribed.set_result(track)

    grants = {"roomJoin": True, "room": plan["room"], "canPublish": False, "canSubscribe": True}
    jwt = token(plan["api_key"], plan["api_secret"], plan["identity"], grants)
    emit("connecting")
    await room.connect(plan["url"], jwt)
    emit("connected")
    track = await subscribed
    await asyncio.gather(first_packet(track), first_sound(track))
    await room.disconnect()


async def first_packet(track: rtc.RemoteTrack) -> None:
    # There is no event for it.
    while not any(packets(stat) for stat in await track.get_stats()):  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    emit("first_packet")


def packets(stat: object) -> int:
    return stat.inbound_rtp.received.packets_received if stat.HasField("inbound_rtp") else 0


async def first_sound(track: rtc.RemoteTrack) -> None:
    stream = rtc.AudioStream(track)
    async for event in stream:
        if any(event.frame.data):
            break
    emit("first_sound")
    await stream.aclose()


if __name__ == "__main__":
    asyncio.run(main())
