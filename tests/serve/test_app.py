"""The server, asked over HTTP while it runs."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import qlab.engine
from qlab.errors import QlabError
from qlab.serve import RunningServer, make_app
from tests.engine.conftest import make


@pytest.fixture(scope="module")
def app(engine):
    return make_app({"story": engine}, max_running=4, max_waiting=40)


@pytest.fixture(scope="module")
def client(app):
    with RunningServer(app) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def complete(client, **body):
    body = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, **body}
    return client.post("/v1/completions", json=body)


def streamed(client, path="/v1/completions", **body):
    """All JSON objects of a stream, and that it ends as it must."""
    body = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, **body}
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_a_completion_has_the_documented_shape(client, engine):
    found = complete(client).json()
    assert found["object"] == "text_completion" and found["id"].startswith("cmpl-")
    assert set(found) == {"id", "object", "created", "model", "choices", "usage"}
    [choice] = found["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert choice["index"] == 0 and choice["logprobs"] is None
    assert choice["finish_reason"] == "length"
    ids = engine.tokenizer("Once upon a time")["input_ids"]
    new = list(engine.generate(ids, 12))
    whole = engine.tokenizer.decode([*ids, *new], skip_special_tokens=True)
    assert choice["text"] == whole.removeprefix("Once upon a time")
    assert found["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": 12,
        "total_tokens": len(ids) + 12,
    }


def test_a_stream_is_the_same_text_in_pieces(client):
    whole = complete(client, max_tokens=30).json()
    pieces = streamed(client, max_tokens=30, stream_options={"include_usage": True})
    *pieces, last = pieces
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert "".join(p["choices"][0]["text"] for p in pieces) == whole["choices"][0]["text"]
    assert [p["choices"][0]["finish_reason"] for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert len({p["id"] for p in pieces}) == 1 and len(pieces) > 15


def test_log_probabilities(client):
    found = complete(client, logprobs=3).json()["choices"][0]
    one = found["logprobs"]
    assert set(one) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(one["tokens"]) == found["text"]
    for token, p, top, at in zip(*(one[k] for k in one), strict=True):
        # Greedy: the token is the likeliest. Two tokens may decode to the same characters.
        assert p <= 0 and max(top.values()) == p == top[token] and len(top) <= 3
        assert found["text"][at:].startswith(token)
    assert sum(math.exp(v) for v in one["top_logprobs"][0].values()) <= 1
    parts = [p["choices"][0]["logprobs"] for p in streamed(client, logprobs=3)]
    for key in one:
        assert [x for part in parts for x in part[key]] == one[key]


def test_many_prompts_and_many_texts_of_each(client):
    prompts = ["One day", "The moon"]
    found = complete(client, prompt=prompts, n=2, temperature=0.9, seed=3).json()["choices"]
    assert [c["index"] for c in found] == [0, 1, 2, 3]
    again = complete(client, prompt=prompts, n=2, temperature=0.9, seed=3).json()["choices"]
    assert found == again and found[0]["text"] != found[1]["text"]
    ids = complete(client, prompt=[[1, 500, 600], [1, 700]]).json()
    assert len(ids["choices"]) == 2 and ids["usage"]["prompt_tokens"] == 5
    pieces = streamed(client, prompt=prompts, n=2, temperature=0.9, seed=3)
    for c in found:
        texts = [p["choices"][0]["text"] for p in pieces if p["choices"][0]["index"] == c["index"]]
        assert "".join(texts) == c["text"]


def test_greedy_answers_under_load_are_those_given_alone(client, story):
    """Twice as many requests as there are places, of different lengths, at once."""
    prompts = [" ".join(t.split()[: 4 + 7 * (i % 5)]) for i, t in enumerate(story.validation()[:8])]
    asks = [dict(prompt=p, max_tokens=20 + i, ignore_eos=True) for i, p in enumerate(prompts)]
    alone = [complete(client, **ask).json()["choices"] for ask in asks]
    with ThreadPoolExecutor(len(asks)) as pool:
        together = list(pool.map(lambda ask: complete(client, **ask).json()["choices"], asks))
    assert together == alone


def test_a_repetition_penalty_is_that_of_the_engine(client, engine, story):
    ids = story.tokenizer("Once upon a time")["input_ids"]
    how = {"repetition_penalty": 1.2, "temperature": 0}
    found = complete(client, prompt=ids, max_tokens=40, **how).json()["choices"][0]["text"]
    alone = list(engine.generate(ids, 40, repetition_penalty=1.2))
    told = story.tokenizer.decode([*ids, *alone], skip_special_tokens=True)
    assert told == story.tokenizer.decode(ids, skip_special_tokens=True) + found
    assert alone != list(engine.generate(ids, 40))


def test_stop_strings_cut_the_text_and_are_not_in_it(client):
    text = complete(client, max_tokens=30).json()["choices"][0]["text"]
    stop = text[17:24]  # across the borders of tokens
    cut = text[: text.index(stop)]
    [choice] = complete(client, max_tokens=30, stop=[stop, "never"]).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (cut, "stop")
    pieces = streamed(client, max_tokens=30, stop=stop)
    assert "".join(p["choices"][0]["text"] for p in pieces) == cut
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_story_that_ends_says_stop(client, story):
    ids = story.tokenizer("The end.")["input_ids"]
    # Greedy may go on; at temperature 1 some of many short stories end by themselves.
    found = complete(client, prompt=[ids] * 8, temperature=1, seed=0, max_tokens=400).json()
    ended = [c for c in found["choices"] if c["finish_reason"] == "stop"]
    assert ended and all("</s>" not in c["text"] for c in ended)


@pytest.mark.parametrize(
    "body, status, param",
    [
        ({"model": "gpt-4"}, 404, "model"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": ""}, 200, None),  # the token that begins a text is a prompt
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "prompt"),
        ({"prompt": [10**6]}, 400, None),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**5}, 400, None),
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 2.5}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty"),
        ({"n": 0}, 400, "n"),
        ({"n": 33}, 400, "n"),
        ({"logprobs": 6}, 400, "logprobs"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"echo": True}, 400, "echo"),
        ({"echo": 0}, 400, "echo"),
        ({"echo": False, "best_of": 1, "logit_bias": {}, "user": "me"}, 200, None),
        ({"presence_penalty": 1}, 400, "presence_penalty"),
        ({"max_token": 3}, 400, "max_token"),
    ],
)
def test_bad_fields_are_named_in_openais_form(client, body, status, param):
    answer = complete(client, **body)
    assert answer.status_code == status, answer.text
    if status != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param and error["type"] == "invalid_request_error"
        assert len(error["message"]) > 10 and "\n" not in error["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 9999]
)
def test_bodies_that_are_no_requests(client, content):
    answer = client.post("/v1/completions", content=content)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_body_too_large_and_addresses_that_are_not_there(client):
    answer = client.post("/v1/completions", content=b"x" * (2 << 20))
    assert answer.status_code == 413
    assert client.get("/v1/completions").status_code == 405
    answer = client.get("/v2")
    assert answer.status_code == 404 and "/v2" in answer.json()["error"]["message"]


def test_models(client, engine):
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "story" and model["object"] == "model"
    assert client.get("/v1/models/story").json() == model
    answer = client.get("/v1/models/other")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


MESSAGES = [{"role": "user", "content": "Once upon a time"}]


def test_a_chat_needs_a_template(client):
    answer = client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "chat_template_missing"


@pytest.fixture(scope="module")
def chat(story, engine):
    """The storyteller with a template that gives the last message alone."""
    import copy

    talker = copy.copy(engine)
    talker._tokenizer = copy.deepcopy(story.tokenizer)
    talker._tokenizer.chat_template = (
        "{{ bos_token }}{% if messages[-1]['role'] != 'user' %}"
        "{{ raise_exception('the last message is not the user\\'s') }}{% endif %}"
        "{{ messages[-1]['content'] }}"
    )
    with (
        RunningServer(make_app({"talker": talker})) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client


def test_a_chat_is_a_completion_of_the_template(chat, client):
    text = complete(client, max_tokens=9).json()["choices"][0]["text"]
    body = {"messages": MESSAGES, "max_completion_tokens": 9, "temperature": 0}
    found = chat.post("/v1/chat/completions", json=body).json()
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Once upon a time"}]}]
    again = chat.post("/v1/chat/completions", json={**body, "messages": parts}).json()
    assert again["choices"] == found["choices"]
    with chat.stream(
        "POST", "/v1/chat/completions", json={**body, "stream": True, "logprobs": True}
    ) as answer:
        lines = [json.loads(x[6:]) for x in answer.iter_lines() if x.startswith("data: {")]
    assert all(one["object"] == "chat.completion.chunk" for one in lines)
    deltas = [one["choices"][0]["delta"] for one in lines]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("content", "") for d in deltas) == text
    words = [w for one in lines[1:] for w in one["choices"][0]["logprobs"]["content"]]
    assert len(words) == 9 and all(w["logprob"] <= 0 and w["top_logprobs"] == [] for w in words)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": MESSAGES, "top_logprobs": 3},
        {"messages": MESSAGES, "tools": [{"type": "function"}]},
        {"messages": MESSAGES, "response_format": {"type": "json_object"}},
    ],
)
def test_bad_chats(chat, body):
    answer = chat.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


def numbers(client):
    from prometheus_client.parser import text_string_to_metric_families

    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    return families, {
        (s.name, s.labels.get("reason"), s.labels.get("le")): s.value
        for family in families
        for s in family.samples
    }


@pytest.mark.oracle("server /metrics", "prometheus_client", "its parser reads what was counted")
def test_metrics_count_what_was_done(client):
    families, before = numbers(client)
    assert all(f.documentation and f.type in ("gauge", "counter", "histogram") for f in families)
    complete(client, max_tokens=7, n=3, ignore_eos=True)
    _, after = numbers(client)

    def grown(name, reason=None, le=None):
        return after[name, reason, le] - before[name, reason, le]

    assert grown("qlab_written_tokens_total") == 21
    assert grown("qlab_requests_ended_total", "length") == 3
    for name in ("time_to_first_token", "time_per_token", "request"):
        assert grown(f"qlab_{name}_seconds_count") == 3
        assert grown(f"qlab_{name}_seconds_bucket", None, "+Inf") == 3
        assert grown(f"qlab_{name}_seconds_sum") > 0
    counts = [v for (n, _, le), v in after.items() if n == "qlab_request_seconds_bucket"]
    assert counts == sorted(counts)
    assert after["qlab_cache_usage_ratio", None, None] == 0


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_text(client, app, stream):
    """A long answer is cancelled, and its blocks are free again."""
    worker = app.state.services["story"].worker
    before = app.state.services["story"].metrics.ended_by["cancelled"]
    body = {"prompt": "One day", "max_tokens": 500, "ignore_eos": True, "temperature": 0}
    if stream:
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=body, timeout=0.05)
    until(lambda: app.state.services["story"].metrics.ended_by["cancelled"] == before + 1)
    until(lambda: not worker.scheduler.busy)
    assert worker.scheduler.pool.free == worker.scheduler.pool.count


def test_too_many_requests_are_told_so(engine):
    app = make_app({"story": engine}, max_running=1, max_waiting=1)
    with RunningServer(app) as server:
        body = {"prompt": "One day", "max_tokens": 60, "ignore_eos": True, "temperature": 0}

        def one(_):
            return httpx.post(server.url + "/v1/completions", json=body, timeout=120)

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(one, range(6)))
        codes = [a.status_code for a in answers]
        assert set(codes) == {200, 429}
        refused = answers[codes.index(429)]
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        # All texts of a request are taken, or none.
        several = httpx.post(server.url + "/v1/completions", json={**body, "n": 5})
        assert several.status_code == 429
        worker = app.state.services["story"].worker
        until(lambda: not worker.scheduler.busy)


def test_a_key(engine):
    with RunningServer(make_app({"story": engine}, api_key="secret")) as server:
        url = server.url + "/v1/models"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(url, headers={"authorization": "Bearer secret"}).status_code == 200
        assert httpx.get(server.url + "/health").status_code == 200


def test_two_models_and_a_chooser(engine, story):
    small, _ = qlab.quantize_model(story.model, "rtn", "int4-g128")
    pair = type("Pair", (), {"model": small, "tokenizer": story.tokenizer})()
    engines = {"full": engine, "small": qlab.engine.load(pair)}
    seen = []

    def choose(name, body):
        return "small" if body.get("user") == "canary" else name

    app = make_app(engines, choose=choose, observe=lambda name, handle: seen.append((name, handle)))
    with RunningServer(app) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        assert complete(client).json()["model"] == "full"
        assert complete(client, model="small").json()["model"] == "small"
        assert complete(client, model="full", user="canary").json()["model"] == "small"
        assert complete(client, model="nobody", user="canary").status_code == 404
    assert [name for name, _ in seen] == ["full", "small", "small"]
    assert all(handle.finish_reason == "length" for _, handle in seen)


def test_a_model_that_fails_is_an_error_and_the_server_goes_on(engine):
    app = make_app({"story": engine})
    model = app.state.services["story"].worker.scheduler.model
    read = model.read

    def broken(*args):
        raise FloatingPointError("not a number")

    with RunningServer(app) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        model.read = broken
        answer = complete(client)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "not a number" in streamed(client)[-1]["error"]["message"]
        model.read = read
        assert complete(client).status_code == 200


def test_open_answers_come_to_an_end_when_it_stops(engine):
    app = make_app({"story": engine})
    with RunningServer(app) as server:
        body = {"prompt": "One day", "max_tokens": 200, "ignore_eos": True, "stream": True}
        first, lines = threading.Event(), []

        def read():
            with httpx.stream(
                "POST", server.url + "/v1/completions", json=body, timeout=120
            ) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    first.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert first.wait(60)
    thread.join(60)
    assert [x for x in lines if x][-1] == "data: [DONE]"
    assert json.loads([x for x in lines if x][-2][6:])["choices"][0]["finish_reason"] == "length"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_small_pieces_of_a_stream_do_not_wait_for_one_another(host):
    """Nagle's algorithm is off on the connections that asyncio takes from the socket."""
    import asyncio
    import socket

    from qlab.serve.running import listen

    try:
        found = listen(host)
    except QlabError:
        pytest.skip(f"this machine has no {host}")
    seen = []

    async def answer(reader, writer):
        own = writer.get_extra_info("socket")
        seen.append(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def run():
        server = await asyncio.start_server(answer, sock=found)
        async with server:
            reader, writer = await asyncio.open_connection(*found.getsockname()[:2])
            await reader.read()
            writer.close()

    asyncio.run(run())
    assert seen and all(seen)


def test_what_cannot_be_served_is_said_before_anything_starts(engine):
    with pytest.raises(QlabError, match="no engines"):
        make_app({})
    with pytest.raises(QlabError, match="model alone"):
        make_app(qlab.engine.load(make("llama")))
    with pytest.raises(QlabError, match="max_running 0"):
        make_app({"story": engine}, max_running=0)
    with RunningServer(make_app({"story": engine})) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(QlabError, match=f"port {port}"):
            RunningServer(server.app, port)


@pytest.mark.slow
def test_the_command_serves_and_stops_when_it_is_told():
    command = [sys.executable, "-m", "qlab", "serve", "story", "--scheme", "int4-g128"]
    command += ["--threads", "1"]
    run = subprocess.Popen(
        [*command, "--port", "0", "--name", "small"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        line = run.stdout.readline()
        url = line.split()[-1]
        answer = {}
        for _ in range(600):
            try:
                answer = httpx.post(url + "/v1/completions", json={"prompt": "One day"}, timeout=60)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert answer.json()["model"] == "small"
    finally:
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["story", "--port", "70000"], "--port 70000"),
        (["story", "--scheme", "int99"], "int99"),
        (["story", "--port", "0", "--max-running", "0"], "max_running 0"),
        (["story", "--port", "0", "--threads", "0"], "threads 0"),
        (["no/such/folder", "--port", "0"], "no/such/folder"),
    ],
)
def test_the_command_refuses_in_one_line(words, said, capsys):
    from qlab.cli import main

    assert main(["serve", *words]) == 2
    out = capsys.readouterr()
    assert said in out.err and out.err.count("\n") == 1 and out.out == ""
