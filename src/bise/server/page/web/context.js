// The bar under the conversation: what the context holds, what the window has let go, what did not have to be read again.
import { ask } from './api.js';
import { byId, el, number, seconds } from './dom.js';

const NAMES = { system: 'System prompt', history: 'History', question: 'Your message', answer: 'The answer', room: 'Room left' };

export class ContextBar {
  constructor() {
    this.box = byId('context');
    this.systems = new Map(); // a system prompt -> how many tokens it has
  }

  /** model: {context, window}; tree: the conversation. */
  async show(model, tree) {
    const path = tree.path;
    const last = path.findLast((message) => message.usage);
    if (!last || !model?.context) return this.box.replaceChildren();
    const before = path.slice(0, path.indexOf(last)).findLast((message) => message.usage)?.usage;
    const system = await this.#system(tree.settings.system ?? '');
    this.#draw(model, last.usage, parts(last.usage, before, system, model.context));
  }

  async #system(text) {
    if (!text) return 0;
    if (!this.systems.has(text)) {
      try {
        const { count } = await ask('POST', '/tokenize', { content: text, add_special: false });
        this.systems.set(text, count);
      } catch {
        return 0; // shown as history
      }
    }
    return this.systems.get(text);
  }

  #draw({ context, window }, usage, list) {
    const used = usage.prompt + usage.completion;
    const first = window ? Math.max(0, used - window) : 0; // the first token that the next one sees
    const rest = `${number(used)} of ${number(context)} tokens`;
    const line = el('span', { class: 'caption' }, summary(rest, window, first));
    const tell = (text) => () => { line.textContent = text ?? summary(rest, window, first); };
    const segments = list.filter((part) => part.size > 0).map((part) => segment(part, context, first, tell));
    const bar = el('div', { class: 'bar' }, segments);
    bar.append(...marks(usage, context, window, first, used));
    this.box.replaceChildren(bar, el('div', { class: 'context-words' }, line, el('span', { class: 'figures' }, figures(usage))));
  }
}

/** Where each part begins and how long it is, in tokens. */
function parts(usage, before, system, context) {
  const known = before ? Math.min(before.prompt + before.completion, usage.prompt) : 0;
  const told = Math.min(system, usage.prompt);
  const list = [
    ['system', told], ['history', Math.max(0, known - told)], ['question', usage.prompt - Math.max(known, told)],
    ['answer', usage.completion], ['room', Math.max(0, context - usage.prompt - usage.completion)],
  ];
  let from = 0;
  return list.map(([kind, size]) => {
    const part = { kind, size, from };
    from += size;
    return part;
  });
}

function summary(rest, window, first) {
  if (!window) return rest;
  return first ? `${rest}, ${number(first)} rolled out of the window` : `${rest}, all within the window`;
}

function segment({ kind, size, from }, context, first, tell) {
  const gone = Math.max(0, Math.min(size, first - from));
  const where = kind === 'room' ? '' : `, ${number(from + 1)} to ${number(from + size)}`;
  const lost = gone && kind !== 'room' ? `; ${gone === size ? 'rolled' : `${number(gone)} of them rolled`} out of the window` : '';
  const text = `${NAMES[kind]}: ${number(size)} tokens${where}${lost}`;
  const node = el('span', { class: `part ${kind}`, tabindex: 0, role: 'img', 'aria-label': text,
    onpointerenter: tell(text), onfocus: tell(text), onpointerleave: tell(), onblur: tell() });
  node.style.setProperty('--size', String(size / context));
  return node;
}

/** The reused beginning, and the window as a bracket. */
function marks(usage, context, window, first, used) {
  const mark = (name, from, to) => {
    const node = el('span', { class: `mark ${name}`, 'aria-hidden': 'true' });
    node.style.setProperty('--from', String(from / context));
    node.style.setProperty('--to', String(to / context));
    return node;
  };
  const list = [];
  if (usage.reused) list.push(mark('reused', 0, Math.min(usage.reused, usage.prompt)));
  if (first) list.push(mark('gone', 0, first));
  if (window) list.push(mark('window', first, first ? used : Math.min(window, context)));
  return list;
}

function figures({ rate, first, reused, prompt }) {
  const list = [];
  if (rate > 0) list.push(`${rate < 10 ? rate.toFixed(1) : number(rate)} tokens/s`);
  if (first > 0) list.push(`first after ${seconds(first)}`);
  if (reused > 0) list.push(`${number(Math.min(reused, prompt))} reused`);
  return list.join(' · ');
}
