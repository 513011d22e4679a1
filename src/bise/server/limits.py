"""Every limit on what a request may ask for, in one table. A request beyond one is refused by name, before any work."""

from __future__ import annotations

# --- bodies
BODY = 8 << 20  # bytes of a request's body
DEPTH = 64  # how deep JSON may be nested
NAME = 256  # characters of a model's name, a salt, a user's name

# --- what is generated
CHOICES = 8  # n: answers to one prompt
PROMPTS = 64  # prompts of one completion request
MAX_TOKENS = 1 << 20  # of one answer; the context ends it sooner
COMPLETION_TOKENS = 16  # max_tokens of /v1/completions where none is given (OpenAI's default)
STOPS = 16  # stop strings
STOP = 200  # characters of one
BIASES = 1024  # entries of logit_bias
BIAS = 100.0  # the largest bias, as in OpenAI's API
LOGPROBS = 20  # alternatives shown for each token

# --- conversations
MESSAGES = 1024  # of one conversation
TOOLS = 128  # of one request
CALLS = 16  # tool calls of one answer
GRAMMAR = 64 << 10  # characters of a regex or a grammar

# --- conversations that are kept, for each tenant
CONVERSATIONS = 2000
CONVERSATION = 4 << 20  # bytes of one file
KEPT_MESSAGES = 4096  # of one conversation, all branches counted
SAID = 1 << 20  # characters of one message
TITLE = 200  # characters
FOUND = 50  # conversations that a search shows

# --- other routes
INPUTS = 64  # texts of one embedding request

# --- time
PING = 5.0  # seconds of silence after which a stream says that it is alive
INLINE = 4096  # characters that are tokenised at once; longer texts go to a thread

# --- connections (connection.py, access.py)
HEAD_BYTES = 32 << 10  # of a request: its first line and its headers
HEAD_FIELDS = 100  # headers
HEAD_SECONDS = 10.0  # in which the head of a request has to arrive
BODY_SECONDS = 30.0  # and then its body
READER_SECONDS = 30.0  # in which a client has to take some of what waits for it
IDLE_SECONDS = 75  # that a connection is kept open for the next request
LINGER_SECONDS = 2.0  # that a refused client is listened to, so that it can read why
UNREAD_BYTES = 256 << 10  # that may wait for a client before its answer is held up
BODIES = 256 << 20  # bytes of bodies that are held at once, all requests together
SLOWED = 256  # clients with wrong keys that are kept waiting at once

# --- on disk, for each tenant
SESSIONS = 256  # saved sessions
SESSION_BYTES = 32 << 30  # of all of them, before another one is written

# --- responses that are kept in memory (kept.py)
RESPONSES = 256  # of each tenant
RESPONSE_BYTES = 16 << 20  # of each tenant: characters of JSON
ALL_RESPONSE_BYTES = 64 << 20  # of all
