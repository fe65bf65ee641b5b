"""The Anthropic Python client against strata's /v1/messages."""
import anthropic
import pytest


@pytest.fixture
def client(node):
    return anthropic.Anthropic(base_url=node.url, api_key="none", max_retries=0, timeout=120)


# This client no longer has a parameter for it.
GREEDY = {"extra_body": {"temperature": 0}}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_message(client):
    answer = client.messages.create(model="smollm2", max_tokens=24, messages=QUESTION, **GREEDY)
    assert answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens > 0


def test_stream(client):
    whole = client.messages.create(model="smollm2", max_tokens=24, messages=QUESTION, **GREEDY).content[0].text
    with client.messages.stream(model="smollm2", max_tokens=24, messages=QUESTION, **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole == final.content[0].text


def test_system(client):
    answer = client.messages.create(model="smollm2", max_tokens=16, system="You are a helpful assistant.",
                                    messages=QUESTION)
    assert answer.content[0].text


TOOL = {"name": "get_weather", "description": "The weather in a city", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}}


def test_tools_reach_the_prompt(client, tools_model):
    without = client.messages.create(model=tools_model, max_tokens=4, messages=QUESTION, **GREEDY)
    with_tools = client.messages.create(model=tools_model, max_tokens=4, messages=QUESTION, tools=[TOOL], **GREEDY)

    def prompt_tokens(answer):
        return answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert prompt_tokens(with_tools) > prompt_tokens(without) + 50


def test_tool_use(client, eager_model):
    ask = {"model": eager_model, "max_tokens": 100, "messages": QUESTION, "tools": [TOOL], "tool_choice": {"type": "any"}}
    answer = client.messages.create(**ask, **GREEDY)
    assert answer.stop_reason == "tool_use"
    use = next(block for block in answer.content if block.type == "tool_use")
    assert use.id and use.name == "get_weather" and list(use.input) == ["city"]
    with client.messages.stream(**ask, **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert next(block for block in final.content if block.type == "tool_use").input == use.input


def test_count_tokens(client):
    assert client.messages.count_tokens(model="smollm2", messages=QUESTION).input_tokens > 5


def test_errors_have_anthropics_shape(client):
    with pytest.raises(anthropic.NotFoundError) as e:
        client.messages.create(model="nonesuch", max_tokens=4, messages=QUESTION)
    assert e.value.body["type"] == "error" and e.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="smollm2", max_tokens=4, messages=[{"role": "user", "content": "word " * 20000}])
