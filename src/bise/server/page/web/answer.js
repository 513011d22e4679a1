// One answer as it is made: asked for, read, spoken, and whatever goes wrong on the way.
import { Refusal, ask, stream } from './api.js';
import { sampling } from './settings.js';

const ALTERNATIVES = 8;
const SHORT = 256; // tokens by which a text grows where nothing else is said
const PATIENCE = 30; // times that a busy or loading server is asked again
export const BYTES = '�'; // begins the name of a token that is no whole character

/** A token is kept as [text, logprob, [[text, logprob], ...]]. */
export class Answer {
  /** message: the assistant's, in `tree`; where it has a text already, that is continued. */
  constructor(tree, message, model) {
    Object.assign(this, { tree, message, model });
    this.state = 'waiting'; // 'waiting' | 'busy' | 'reading' | 'speaking' | 'done'
    this.progress = null; // {read, total, reused}
    this.until = 0; // while busy: when the server is asked again, ms
    this.abort = new AbortController();
    this.decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  }

  stop() {
    this.abort.abort();
  }

  /** changed(answer): called whenever there is something new to show. Never throws. */
  async run(changed) {
    this.changed = changed;
    const { message } = this;
    Object.assign(message, { finish: '', error: '' });
    this.begin = message.tokens?.length ?? 0;
    try {
      await this.#patiently();
      message.finish ||= 'stop';
    } catch (error) {
      if (error.name === 'AbortError') message.finish = 'stopped';
      else Object.assign(message, { finish: 'error', error: error.message });
      if (!(error instanceof Refusal || error.name === 'AbortError')) console.error(error); // ours: say where
    } finally {
      this.state = 'done';
      this.#measure();
      changed(this);
    }
  }

  async #patiently() {
    for (let tries = 0; ; tries += 1) {
      try {
        return await this.#once();
      } catch (error) {
        const busy = error instanceof Refusal && (error.status === 429 || error.status === 503);
        if (!busy || tries >= PATIENCE) throw error;
        await this.#pause(error);
      }
    }
  }

  async #pause(error) {
    this.state = 'busy';
    this.why = error;
    this.until = Date.now() + 1000 * Math.max(1, error.wait);
    while (Date.now() < this.until) {
      this.changed(this);
      await new Promise((done) => setTimeout(done, 250));
      this.abort.signal.throwIfAborted();
    }
    this.state = 'waiting';
  }

  async #once() {
    this.asked = performance.now();
    this.first = 0;
    const chat = this.tree.kind === 'chat';
    const path = chat ? '/v1/chat/completions' : '/v1/completions';
    for await (const event of stream(path, chat ? this.#chat() : await this.#text(), this.abort.signal)) {
      this.#take(event);
      this.changed(this);
    }
  }

  #chat() {
    const { system } = this.tree.settings;
    const path = this.tree.path.filter((message) => message.content); // a failed answer says nothing
    const messages = path.map(({ role, content }) => ({ role, content }));
    if (system) messages.unshift({ role: 'system', content: system });
    if (this.message.content) messages.at(-1).prefix = true;
    return { messages, logprobs: true, top_logprobs: ALTERNATIVES, ...this.#common() };
  }

  /** The completions API has a short answer where nothing is said: as long as fits is counted first. */
  async #text() {
    const prompt = this.tree.path.map((message) => message.content).join('');
    const { count } = await ask('POST', '/tokenize', { content: prompt });
    const max_tokens = Math.max(1, Math.min(this.tree.settings.max_tokens ?? SHORT, this.model.context - count));
    return { prompt, logprobs: 5, ...this.#common(), max_tokens };
  }

  #common() {
    const stream_options = { include_usage: true, include_progress: true };
    return { model: this.model.name, stream: true, stream_options, ...sampling(this.tree.settings) };
  }

  #take(event) {
    const { message } = this;
    if (event.progress) {
      this.progress = event.progress;
      if (this.state !== 'speaking') this.state = 'reading';
    }
    const choice = event.choices?.[0];
    const text = choice?.delta?.content ?? choice?.text ?? '';
    if (text) {
      this.state = 'speaking';
      this.first ||= performance.now();
      message.content += text;
    }
    if (choice?.logprobs) this.#tokens(choice.logprobs);
    if (choice?.finish_reason) message.finish = choice.finish_reason;
    if (event.usage) this.usage = event.usage;
    if (event.timings) this.timings = event.timings;
  }

  #tokens(logprobs) {
    this.last = performance.now();
    this.message.tokens ??= [];
    if (Array.isArray(logprobs.content)) {
      for (const token of logprobs.content) this.message.tokens.push(this.#token(token));
    } else (logprobs.tokens ?? []).forEach((text, i) => {
      const top = Object.entries(logprobs.top_logprobs?.[i] ?? {});
      this.message.tokens.push([this.#named(text), round(logprobs.token_logprobs[i]), top.map(([t, p]) => [marked(t), round(p)])]);
    });
  }

  #named(name) {
    const hex = name.startsWith('bytes:') ? name.slice(6).match(/[0-9a-f]{2}/g) ?? [] : null;
    return hex ? this.decoder.decode(Uint8Array.from(hex, (each) => parseInt(each, 16)), { stream: true }) : name;
  }

  #token({ token, bytes, logprob, top_logprobs }) {
    const text = bytes?.length ? this.decoder.decode(Uint8Array.from(bytes), { stream: true }) : token;
    return [text, round(logprob), (top_logprobs ?? []).map((other) => [whole(other), round(other.logprob)])];
  }

  /** What the answer took, written into the message. */
  #measure() {
    const { message, usage, timings } = this;
    const fresh = (message.tokens?.length ?? 0) - this.begin;
    if (!usage && !fresh) return;
    const spoken = (this.last - this.first) / 1000;
    const read = usage?.prompt_tokens ?? this.progress?.total; // a stopped answer may know neither
    message.usage = {
      prompt: read ? Math.max(0, read - this.begin) : message.usage?.prompt ?? 0, // a prefix is part of the answer
      completion: this.begin + (usage?.completion_tokens ?? fresh),
      reused: usage?.prompt_tokens_details?.cached_tokens ?? this.progress?.reused ?? 0,
      first: round(timings ? timings.queue_seconds + timings.prefill_seconds : (this.first - this.asked) / 1000),
      rate: round(timings?.tokens_per_second ?? (spoken > 0 ? (fresh - 1) / spoken : 0)),
    };
  }
}

const round = (x) => (typeof x === 'number' ? Math.round(x * 1e4) / 1e4 : null);

/** The text of an alternative; its bytes where they are no whole character, its name where it has no text. */
function whole({ token, bytes }) {
  if (!bytes) return token;
  if (!bytes.length) return BYTES + token;
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes));
  } catch {
    return BYTES + bytes.map((byte) => byte.toString(16).padStart(2, '0').toUpperCase()).join(' ');
  }
}

/** The completions API names such tokens "bytes:\\xe2\\x80". */
const marked = (name) => (name.startsWith('bytes:') ? BYTES + name.slice(6).replaceAll('\\x', ' ').trim().toUpperCase() : name);
