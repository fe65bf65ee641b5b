"""The OpenAI Python client against strata: what its users do must work unchanged."""
import json

import openai
import pytest


@pytest.fixture
def client(node):
    return openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client, prompt, model="smollm2", **options):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}],
                                          **{"temperature": 0, "max_tokens": 24, **options})


def test_chat(client):
    answer = ask(client, "What is the capital of France?")
    assert len(answer.choices[0].message.content) > 10
    assert answer.model.startswith("smollm2")
    assert answer.usage.completion_tokens > 0 and answer.usage.prompt_tokens > 0


def test_stream_has_the_same_text_as_the_whole_answer(client):
    prompt = "Name three colours."
    whole = ask(client, prompt).choices[0].message.content
    pieces = [c.choices[0].delta.content or "" for c in ask(client, prompt, stream=True) if c.choices]
    assert len(pieces) > 3
    assert "".join(pieces) == whole


def test_stream_usage(client):
    chunks = list(ask(client, "Hi", stream=True, stream_options={"include_usage": True}, max_tokens=5))
    assert chunks[-1].usage.completion_tokens == 5


def test_several_choices(client):
    answer = ask(client, "Say a word.", n=2, temperature=1, seed=3, max_tokens=4)
    assert len(answer.choices) == 2


def test_stop(client):
    answer = ask(client, "Count from one to five in digits, separated by spaces.", stop=["3"], max_tokens=60)
    assert "3" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_seed_is_reproducible(client):
    texts = {ask(client, "Tell me something.", temperature=1.0, seed=42).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1


def test_logprobs(client):
    answer = ask(client, "Hi", logprobs=True, top_logprobs=3, max_tokens=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 3
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in tokens)
    # Greedy picks the most likely token.
    assert all(t.token == t.top_logprobs[0].token for t in tokens)


def test_json_schema(client):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20},
                                               "population": {"type": "integer"}},
              "required": ["city", "population"], "additionalProperties": False}
    answer = ask(client, "Describe Paris as JSON.", max_tokens=80, response_format={
        "type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}})
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"city", "population"} and isinstance(value["population"], int)


TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}}}


def test_a_conversation_with_tools(client, tools_model):
    """Tools reach the model's prompt, and a tool's answer in the conversation is taken."""
    question = {"role": "user", "content": "What is the weather in Paris?"}
    without = ask(client, question["content"], tools_model, max_tokens=4)
    with_tools = ask(client, question["content"], tools_model, tools=[TOOL], max_tokens=4)
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 50
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    answer = client.chat.completions.create(model=tools_model, temperature=0, max_tokens=16, tools=[TOOL], messages=[
        question, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees, sunny"}])
    assert answer.choices[0].message.content


def test_tool_call(client, eager_model):
    answer = ask(client, "What is the weather in Paris?", eager_model, tools=[TOOL], tool_choice="required", max_tokens=100)
    assert answer.choices[0].finish_reason == "tool_calls"
    call = answer.choices[0].message.tool_calls[0]
    assert call.id and call.type == "function" and call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert list(arguments) == ["city"] and len(arguments["city"]) <= 20

    chunks = list(ask(client, "What is the weather in Paris?", eager_model, tools=[TOOL], tool_choice="required",
                      max_tokens=100, stream=True))
    pieces = [piece for c in chunks if c.choices for piece in c.choices[0].delta.tool_calls or []]
    assert pieces[0].id and pieces[0].function.name == "get_weather" and len(pieces) > 2
    assert "".join(p.function.arguments or "" for p in pieces if p.index == 0) == call.function.arguments
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"


def test_response_with_a_tool_call(client, eager_model):
    answer = client.responses.create(model=eager_model, input="What is the weather in Paris?", temperature=0,
                                     max_output_tokens=100, tool_choice="required",
                                     tools=[{"type": "function", **TOOL["function"]}])
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls[0].name == "get_weather" and list(json.loads(calls[0].arguments)) == ["city"]


def test_completions(client):
    answer = client.completions.create(model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=8)
    assert "Paris" in answer.choices[0].text
    pieces = [c.choices[0].text for c in client.completions.create(
        model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=8, stream=True) if c.choices]
    assert "".join(pieces) == answer.choices[0].text


def test_responses(client):
    answer = client.responses.create(model="smollm2", input="What is the capital of France?", temperature=0,
                                     max_output_tokens=24)
    assert answer.output_text == ask(client, "What is the capital of France?").choices[0].message.content
    kinds = [e.type for e in client.responses.create(model="smollm2", input="Hi", temperature=0, max_output_tokens=8,
                                                     stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds


def test_models(client):
    names = {m.id for m in client.models.list()}
    assert {"smollm2:latest", "minilm:latest"} <= names
    assert client.models.retrieve("smollm2").id.startswith("smollm2")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nonesuch")


def test_embeddings(client):
    answer = client.embeddings.create(model="minilm", input=["a cat", "a dog"])
    assert [len(d.embedding) for d in answer.data] == [384, 384]
    assert abs(sum(x * x for x in answer.data[0].embedding) - 1) < 1e-3


def test_unknown_model_names_those_there_are(client):
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(model="nonesuch", messages=[{"role": "user", "content": "Hi"}])
    assert "nonesuch" in str(e.value) and "smollm2" in str(e.value)


def test_embeddings_of_a_chat_model_are_refused_with_a_reason(client):
    with pytest.raises(openai.BadRequestError) as e:
        client.embeddings.create(model="smollm2", input="a cat")
    assert "embedding" in str(e.value)


def test_chat_with_an_embedding_model_is_refused_with_a_reason(client):
    with pytest.raises(openai.APIStatusError) as e:
        client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "Hi"}])
    assert 400 <= e.value.status_code < 502


def test_prompt_longer_than_the_context(client):
    with pytest.raises(openai.BadRequestError) as e:
        ask(client, "word " * 20000)
    assert "context" in str(e.value)


@pytest.mark.parametrize("bad", [{"temperature": "warm"}, {"messages": "no list"},
                                 {"max_tokens": "many"}, {"n": -1}, {"response_format": {"type": "nonsense"}}])
def test_bad_parameters_are_client_errors(client, bad):
    with pytest.raises(openai.APIStatusError) as e:
        client.chat.completions.create(**{"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}],
                                          "max_tokens": 4, "extra_body": bad})
    assert 400 <= e.value.status_code < 500
    assert e.value.body["message"]
