#!/usr/bin/env python3
"""Asks a question over the OpenAI API and prints the answer as it comes, then the speed. With a process, kills that in the
middle of the answer, to show what happens then.

usage: ask.py BASE-URL MODEL QUESTION [PID]      (standard library only)
"""
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

base, model, question = sys.argv[1:4]
victim = int(sys.argv[4]) if len(sys.argv) > 4 else None
WORDS_BEFORE_THE_KILL = 25
words = 0
body = {"model": model, "stream": True, "max_tokens": 120, "temperature": 0, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": question}]}
request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
start, first, usage = time.monotonic(), None, {}
try:
    with urllib.request.urlopen(request, timeout=300) as response:
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                sys.exit(f"\nask: {event['error']['message']}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text = choice["delta"].get("content")
                if text:
                    first = first or time.monotonic()
                    print(text, end="", flush=True)
                    words += text.startswith(" ")
                    if victim and words >= WORDS_BEFORE_THE_KILL:
                        os.kill(victim, signal.SIGKILL)
                        print(f"\033[2m [process {victim} was killed here]\033[0m" if sys.stdout.isatty() else
                              f" [process {victim} was killed here]", end="", flush=True)
                        victim = None
except urllib.error.HTTPError as e:
    sys.exit(f"ask: {e.code}: {e.read().decode(errors='replace')}")
except urllib.error.URLError as e:
    sys.exit(f"ask: {base} does not answer: {e.reason}")
end = time.monotonic()
tokens = usage.get("completion_tokens", 0)
rate = f", {(tokens - 1) / (end - first):.0f} tokens/s" if tokens > 1 and first else ""
print(f"\n[{tokens} tokens{rate}, first after {((first or end) - start):.2f} s (model load included)]")
