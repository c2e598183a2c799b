#!/usr/bin/env python3
"""Plays files in Chromium and says what came of it: one JSON line a file.

    playback.py [--browser PROGRAM] FILE...

Each line has: file, ok, error, duration (as <audio> gives it), seeked (where it stood after a seek to the middle),
playing (whether time went on from there), energy (RMS per channel of the loudest that was heard after the seek),
decoded (seconds and RMS per channel, as decodeAudioData gives them). Needs Chromium and nothing else; files are served
on 127.0.0.1 with range requests, as seeking needs them.
"""

import argparse
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading

PAGE = """<!doctype html><meta charset="utf-8"><audio id="a" preload="auto"></audio><script>
const wait = (target, name, millis) => new Promise((ok, no) => {
  const timer = setTimeout(() => no(new Error("no " + name + " within " + millis + " ms")), millis);
  target.addEventListener(name, () => { clearTimeout(timer); ok(); }, { once: true });
  target.addEventListener("error", () => no(new Error(target.error ? target.error.message : "error")), { once: true });
});
const sleep = millis => new Promise(ok => setTimeout(ok, millis));
const rms = data => Math.sqrt(data.reduce((sum, value) => sum + value * value, 0) / Math.max(data.length, 1));
async function play(url) {
  const said = { ok: false };
  try {
    const audio = document.getElementById("a");
    audio.src = url;
    await wait(audio, "canplay", 60000);
    said.duration = Number.isFinite(audio.duration) ? audio.duration : null;
    const context = new AudioContext();
    await context.resume();
    const splitter = context.createChannelSplitter(2);
    const source = context.createMediaElementSource(audio);
    source.connect(splitter);
    source.connect(context.destination);
    const ears = [0, 1].map(channel => {
      const ear = context.createAnalyser();
      ear.fftSize = 8192;
      splitter.connect(ear, channel);
      return ear;
    });
    if (said.duration !== null) {
      const seeked = wait(audio, "seeked", 60000);
      audio.currentTime = said.duration / 2;
      await seeked;
      said.seeked = audio.currentTime;
    }
    const before = audio.currentTime;
    await audio.play();
    said.playing = false;
    said.energy = ears.map(() => 0);
    // A busy machine is late with the first sound, or comes to listen only when all is over: then once more from there.
    for (let tries = 0; tries < 200; ++tries) {
      await sleep(250);
      said.playing ||= audio.currentTime > before + 0.2;
      said.energy = ears.map((ear, channel) => {
        const data = new Float32Array(ear.fftSize);
        ear.getFloatTimeDomainData(data);
        return Math.max(said.energy[channel], rms(data));
      });
      if (said.playing && Math.max(...said.energy) > 0.001) break;
      if (audio.ended) {
        audio.currentTime = before;
        await audio.play();
      }
    }
    audio.pause();
    const bytes = await (await fetch(url)).arrayBuffer();
    try {
      const whole = await context.decodeAudioData(bytes);
      const channels = [...Array(whole.numberOfChannels).keys()];
      const energy = channels.map(n => rms(whole.getChannelData(n)));
      said.decoded = { seconds: whole.duration, rate: whole.sampleRate, energy };
    } catch (error) {
      said.decoded = { error: String(error) };
    }
    said.ok = said.playing && Math.max(...said.energy) > 0.001;
  } catch (error) {
    said.error = String(error);
  }
  await fetch("/said", { method: "POST", body: JSON.stringify(said) });
}
play("/file");
</script>"""

TYPES = {
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".webm": "audio/webm",
    ".mp4": "audio/mp4",
    ".m4a": "audio/mp4",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
}


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, path):
        super().__init__(("127.0.0.1", 0), Handler)
        with open(path, "rb") as file:
            self.content = file.read()
        self.kind = TYPES.get(os.path.splitext(path)[1], "application/octet-stream")
        self.said = None
        self.done = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/":
            return self.answer(200, "text/html", PAGE.encode())
        if self.path != "/file":
            return self.answer(404, "text/plain", b"")
        content, asked = self.server.content, self.headers.get("Range")
        if not asked:
            return self.answer(200, self.server.kind, content, {"Accept-Ranges": "bytes"})
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first)
        end = min(int(last) if last else len(content) - 1, len(content) - 1)
        if start > end:
            return self.answer(416, "text/plain", b"", {"Content-Range": f"bytes */{len(content)}"})
        place = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, self.server.kind, content[start : end + 1], {"Accept-Ranges": "bytes", "Content-Range": place})

    def do_POST(self):
        self.server.said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, "text/plain", b"")
        self.server.done.set()

    def answer(self, status, kind, body, headers=()):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            pass

    def log_message(self, *_):
        pass


def play(browser, path, seconds):
    server = Server(path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile = tempfile.mkdtemp()
    process = subprocess.Popen(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--autoplay-policy=no-user-gesture-required",
            f"--user-data-dir={profile}",
            f"http://127.0.0.1:{server.server_port}/",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server.done.wait(seconds)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        server.shutdown()
        shutil.rmtree(profile, ignore_errors=True)
    return server.said or {"ok": False, "error": f"nothing within {seconds} s"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome") or "chromium")
    parser.add_argument("--seconds", type=float, default=240, help="how long to wait for each file")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    fine = True
    for path in arguments.files:
        said = {"file": path, **play(arguments.browser, path, arguments.seconds)}
        fine &= said["ok"]
        print(json.dumps(said), flush=True)
    sys.exit(0 if fine else 1)


main()
