"""Judges how speech sounds against what was said: PESQ-WB (ITU-T P.862.2).

Usage: judge.py CONVERSATION.csv < JOBS.json

The jobs are a list of {"name", "speaker", "original", "heard"}; the latter two are WAV files of 48 kHz that begin at
the same moment. Prints an object that gives, for each name, the score of each line that the speaker says.
"""

import csv
import json
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from pesq import pesq
from scipy.io import wavfile
from scipy.signal import resample_poly

RATE = 48_000
# PESQ-WB works at 16 kHz.
PESQ_RATE = 16_000
# Seconds of silence left around each line.
MARGIN = 0.3


def read(path):
    rate, samples = wavfile.read(path)
    assert rate == RATE, f"{path} has {rate} Hz"
    if samples.dtype == np.int16:
        samples = samples / 32_768
    return samples.astype(np.float64)


def spans(conversation, speaker):
    with open(conversation, newline="") as lines:
        for line in csv.DictReader(lines):
            if line["speaker"] == speaker:
                yield float(line["start_seconds"]) - MARGIN, float(line["end_seconds"]) + MARGIN


def judge(original, heard, conversation, speaker):
    """PESQ-WB of each of the speaker's lines."""
    whole = [resample_poly(read(path), PESQ_RATE, RATE) for path in (original, heard)]
    scores = []
    for start, end in spans(conversation, speaker):
        said, heard = (w[max(0, int(start * PESQ_RATE)) : int(end * PESQ_RATE)] for w in whole)
        scores.append(float(pesq(PESQ_RATE, said, heard, "wb")))
    return scores


def main():
    (conversation,) = sys.argv[1:]
    jobs = json.load(sys.stdin)
    with ProcessPoolExecutor() as pool:
        running = [pool.submit(judge, job["original"], job["heard"], conversation, job["speaker"]) for job in jobs]
        json.dump({job["name"]: future.result() for job, future in zip(jobs, running, strict=True)}, sys.stdout)


if __name__ == "__main__":
    main()
