// All talk with the server.

/** What the server, or the way to it, said no with. status 0: it could not be reached. */
export class Refusal extends Error {
  constructor(status, line, code = '', wait = 0) {
    super(line);
    Object.assign(this, { status, code, wait });
  }
}

async function send(method, path, body, more, signal) {
  const asked = { method, headers: { ...more }, signal, credentials: 'same-origin', cache: 'no-store' };
  if (body !== undefined) {
    asked.body = JSON.stringify(body);
    asked.headers['Content-Type'] = 'application/json';
  }
  let answer;
  try {
    answer = await fetch(path, asked);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal(0, 'The server cannot be reached.');
  }
  if (answer.status === 401) location.reload(); // the log-in has ended: the server shows its form
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const wait = Number(answer.headers.get('Retry-After')) || 0;
  let body = {};
  try { body = await answer.json(); } catch { /* not JSON: the status has to do */ }
  const told = body?.error ?? {};
  const line = told.message ?? (typeof body?.detail === 'string' ? body.detail : `The server answered ${answer.status}.`);
  return new Refusal(answer.status, line, told.code ?? '', wait);
}

/** JSON in, JSON out; throws a Refusal. */
export async function ask(method, path, body, more = {}) {
  const answer = await send(method, path, body, more);
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

/** {state, ...}: 503 is an answer here ("loading", "down"), not a failure. */
export async function health() {
  try {
    const answer = await fetch('/health', { cache: 'no-store' });
    const body = await answer.json().catch(() => ({}));
    return answer.ok ? 'ready' : (body.state ?? body.status ?? 'loading');
  } catch {
    return 'unreachable';
  }
}

/** POST, then each `data:` of the answer as an object, until [DONE]. A stream that ends without it was cut off. */
export async function* stream(path, body, signal) {
  const answer = await send('POST', path, body, { Accept: 'text/event-stream' }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) break;
      const lines = (held + value).split('\n');
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data:')) continue; // a comment keeps the line alive, a blank line ends an event
        const data = line.slice(5).trim();
        if (data === '[DONE]') return;
        const event = JSON.parse(data);
        if (event.error) throw new Refusal(500, event.error.message ?? 'The engine failed.', event.error.code ?? '');
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Refusal(0, 'The connection was cut off.');
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal(0, 'The connection was cut off.');
  }
}
