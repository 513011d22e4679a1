"""LangChain's own client for OpenAI's API, and the tests that LangChain has for every chat model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from server.careless import swept  # noqa: F401
from server.running import Server
from server.talking import hasty, write_v3

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("langchain_openai")
    tests = pytest.importorskip("langchain_tests.integration_tests")
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

pytestmark = pytest.mark.filterwarnings("default")
GREEDY = {"temperature": 0, "max_tokens": 24}


def chat(server: Server, **more: Any) -> ChatOpenAI:
    options = {"model": server.model, "base_url": f"{server.url}/v1", "api_key": "none", **GREEDY, **more}
    return ChatOpenAI(**options)


def test_the_same_text_in_one_piece_and_in_many(server: Server) -> None:
    messages = [SystemMessage("You tell stories."), HumanMessage("Tell me a story about a fox.")]
    whole = chat(server).invoke(messages)
    pieces = list(chat(server).stream(messages))
    assert whole.text and "".join(piece.text for piece in pieces) == whole.text
    assert whole.usage_metadata["output_tokens"] == 24
    assert whole.response_metadata["finish_reason"] == "length"


def test_two_turns_of_one_role(server: Server) -> None:
    """Mistral's roles must alternate: neighbours are merged with an empty line, as docs/serving.md says."""
    twice = chat(server).invoke([HumanMessage("Tell me a story."), HumanMessage("About a fox.")])
    once = chat(server).invoke([HumanMessage("Tell me a story.\n\nAbout a fox.")])
    assert twice.text == once.text


def test_a_conversation_goes_on(server: Server) -> None:
    first = chat(server).invoke("Tell me a story.")
    again = chat(server).invoke([HumanMessage("Tell me a story."), first, HumanMessage("And then?")])
    assert isinstance(again, AIMessage) and again.text


def test_batch(server: Server) -> None:
    questions = ["Tell me a story about a dog.", "Tell me a story about a cat.", "Tell me a story about a hen."] * 4
    together = chat(server).batch(questions, config={"max_concurrency": 12})
    assert [a.text for a in together] == [chat(server).invoke(q).text for q in questions]


async def _streamed(model: ChatOpenAI, text: str) -> str:
    return "".join([piece.text async for piece in model.astream(text)])


def test_async(server: Server) -> None:
    import asyncio

    assert asyncio.run(_streamed(chat(server), "Tell me a story.")) == chat(server).invoke("Tell me a story.").text


def test_logprobs(server: Server) -> None:
    answer = chat(server, logprobs=True, top_logprobs=3).invoke("Tell me a story.")
    tokens = answer.response_metadata["logprobs"]["content"]
    assert len(tokens) == 24 and all(len(t["top_logprobs"]) == 3 for t in tokens)
    assert "".join(t["token"] for t in tokens) == answer.text


def test_completion(server: Server) -> None:
    model = OpenAI(model=server.model, base_url=f"{server.url}/v1", api_key="none", **GREEDY)
    text = model.invoke("Once upon a time")
    assert text and "".join(model.stream("Once upon a time")) == text


def test_embeddings(server: Server) -> None:
    """Token ids by their own tokenizer are OpenAI's: LangChain has to be told to send text."""
    model = OpenAIEmbeddings(
        model=server.model, base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    one, two = model.embed_documents(["The fox ran away.", "A red ball."])
    assert len(one) == len(two) and one != two
    assert model.embed_query("The fox ran away.") == pytest.approx(one)


def test_refusals_are_not_retried(server: Server) -> None:
    """One request, one line in the server's journal."""
    import openai

    with pytest.raises(openai.BadRequestError) as error:
        chat(server).invoke("fox " * 2000)
    assert error.value.code == "context_length_exceeded"


class TestLangChain(tests.ChatModelIntegrationTests):  # type: ignore[misc,name-defined]
    """What LangChain asks of every chat model, of one that was made to call tools (talking.py)."""

    url = model_name = ""
    bias: dict[str, float]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _serve(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = write_v3(tmp_path_factory.mktemp("v3") / "v3.gguf")
        server = Server(str(path), "--slots", "4")
        cls.url, cls.model_name, cls.bias = server.url, path.stem, hasty()
        yield
        server.close()

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"model": self.model_name, "base_url": f"{self.url}/v1", "api_key": "none", "stream_usage": True}
        return {**where, "temperature": 0, "max_tokens": 120, "logit_bias": self.bias}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.model_name


UNLEARNT = {
    "test_json_mode": "which keys the object has to have stands in the prompt only: a model has to understand it",
    "test_bind_runnables_as_tools": "the model has to find words: this one ends every text at once",
    "test_agent_loop": "the model has to decide by itself that it calls a tool, and then that it does not",
    "test_unicode_tool_call_integration": "the model has to repeat a name from the prompt",
    "test_tool_calling_with_no_arguments": "the tool's schema allows any arguments: the model has to know there are none",
}
for _name, _test in inspect.getmembers(TestLangChain, inspect.isfunction):
    if _name in UNLEARNT:
        setattr(TestLangChain, _name, pytest.mark.skip(reason=UNLEARNT[_name])(_test))
    elif inspect.iscoroutinefunction(_test):
        setattr(TestLangChain, _name, pytest.mark.asyncio(_test))
