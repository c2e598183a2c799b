"""Prints, as a Markdown table, how each encoder setting sounds: mean PESQ-WB over what the agent says.

Usage: judge_settings.py SETTINGS.jsonl ORIGINAL.wav CONVERSATION.csv
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


def spans(conversation):
    with open(conversation, newline="") as lines:
        for line in csv.DictReader(lines):
            if line["speaker"] == "agent":
                yield float(line["start_seconds"]) - MARGIN, float(line["end_seconds"]) + MARGIN


def judge(original, decoded, conversation):
    """Mean and lowest PESQ-WB of the agent's lines."""
    scores = []
    whole = [resample_poly(read(path), PESQ_RATE, RATE) for path in (original, decoded)]
    for start, end in spans(conversation):
        said, heard = (w[max(0, int(start * PESQ_RATE)) : int(end * PESQ_RATE)] for w in whole)
        scores.append(pesq(PESQ_RATE, said, heard, "wb"))
    return float(np.mean(scores)), float(np.min(scores))


def main():
    settings, original, conversation = sys.argv[1:]
    with open(settings) as lines:
        runs = [json.loads(line) for line in lines]
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(judge, original, run["file"], conversation) for run in runs]
        for run, job in zip(runs, jobs, strict=True):
            run["pesq"], run["lowest"] = job.result()
    print("| application | kbit/s asked | complexity | frame | kbit/s | × realtime | PESQ-WB | lowest line |")
    print("|---|---|---|---|---|---|---|---|")
    for run in runs:
        config = run["settings"]
        print(
            f"| {config['application']} | {config['bitrate'] // 1000} | {config['complexity']} | {config['frame']} ms "
            f"| {run['bits_a_second'] / 1000:.1f} | {run['speed']:.0f} | {run['pesq']:.2f} | {run['lowest']:.2f} |"
        )


if __name__ == "__main__":
    main()
