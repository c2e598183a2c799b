"""Prints, as a Markdown table, how each encoder setting sounds: mean PESQ-WB over what the agent says.

Usage: judge_settings.py SETTINGS.jsonl ORIGINAL.wav CONVERSATION.csv
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from judge import judge


def main():
    settings, original, conversation = sys.argv[1:]
    with open(settings) as lines:
        runs = [json.loads(line) for line in lines]
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(judge, original, run["file"], conversation, "agent") for run in runs]
        for run, job in zip(runs, jobs, strict=True):
            run["pesq"], run["lowest"] = np.mean(job.result()), min(job.result())
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
