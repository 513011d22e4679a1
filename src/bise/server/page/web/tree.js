// A conversation: messages that know their parents. What is read from top to bottom is the path to `current`.

const ALPHABET = 'abcdefghijkmnpqrstuvwxyz23456789';

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => ALPHABET[byte % 32]).join('');
}

export class Tree {
  /** kept: what the server holds, or nothing for a new one. */
  constructor(kept = {}) {
    this.id = kept.id ?? null; // the server gives it
    this.version = kept.version ?? 0;
    this.title = kept.title ?? '';
    this.kind = kept.kind ?? 'chat'; // 'chat' | 'text'
    this.settings = kept.settings ?? {};
    this.current = kept.current ?? null;
    this.messages = new Map((kept.messages ?? []).map((message) => [message.id, message]));
    if (!this.messages.has(this.current)) this.current = [...this.messages.keys()].at(-1) ?? null;
  }

  /** What the server is given to keep. Parents come before their children: a Map keeps the order of birth. */
  get kept() {
    const { title, kind, settings, current } = this;
    return { title, kind, settings, current, messages: [...this.messages.values()] };
  }

  get path() {
    const path = [];
    for (let at = this.messages.get(this.current); at; at = this.messages.get(at.parent)) path.unshift(at);
    return path;
  }

  get empty() {
    return this.messages.size === 0;
  }

  add(role, content, parent, more = {}) {
    const message = { id: newId(), parent, role, content, created: Date.now() / 1000, ...more };
    this.messages.set(message.id, message);
    this.current = message.id;
    return message;
  }

  /** The message and the others that answer the same one, oldest first. */
  siblings(message) {
    return [...this.messages.values()].filter((other) => other.parent === message.parent);
  }

  /** Read on through `message`, down to its youngest descendant. */
  choose(message) {
    let at = message;
    for (let next = at; next; next = this.#children(at).at(-1)) at = next;
    this.current = at.id;
  }

  step(message, by) {
    const all = this.siblings(message);
    const next = all[all.indexOf(message) + by];
    if (next) this.choose(next);
    return next;
  }

  #children(message) {
    return [...this.messages.values()].filter((other) => other.parent === message.id);
  }

  /** Another tab saved first: take its messages and its title, keep ours and where we are reading. */
  merge(other) {
    const ours = this.messages;
    this.messages = new Map(other.messages.map((message) => [message.id, message]));
    for (const [id, message] of ours) {
      const theirs = this.messages.get(id);
      if (!theirs || message.content.length >= theirs.content.length) this.messages.set(id, message);
    }
    this.version = other.version;
    this.title = other.title || this.title;
  }
}

/** A title from the first words said. */
export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, ' ');
  if (line.length <= 60) return line;
  const cut = line.slice(0, 60);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(' '), 30))}…`;
}
