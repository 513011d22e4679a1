// The messages from top to bottom. Only what changed is drawn again, once a frame.
import { byId, el } from './dom.js';
import { MessageView } from './message.js';

const NEAR = 48; // pixels from the end that still count as being there

export class Thread {
  constructor(act) {
    this.box = byId('thread');
    this.down = byId('down');
    this.act = act;
    this.views = new Map(); // message id -> MessageView
    this.following = true;
    this.tokens = false;
    this.box.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    this.down.addEventListener('click', () => this.end());
    new ResizeObserver(() => this.following && this.end()).observe(this.box);
  }

  /** A conversation, or the words that stand where none is yet. answers: Map of message id -> Answer under way. */
  show(tree, answers, empty = []) {
    Object.assign(this, { tree, answers });
    const path = tree.path;
    this.views = new Map(path.map((message) => [message.id, this.#view(message)]));
    const nodes = path.map((message) => this.views.get(message.id).node);
    this.box.classList.toggle('empty', path.length === 0);
    swap(this.box, nodes.length ? nodes : [el('div', { class: 'welcome' }, ...empty)]);
    path.forEach((message) => this.#draw(message));
    if (this.following) this.end();
  }

  /** One message changed: drawn with the next frame. */
  touch(message) {
    this.waiting ??= new Set();
    if (this.waiting.size === 0) requestAnimationFrame(() => {
      for (const each of this.waiting) this.#draw(each);
      this.waiting.clear();
      if (this.following) this.end();
    });
    this.waiting.add(message);
  }

  colour(on) {
    this.tokens = on;
    for (const view of this.views.values()) this.#draw(view.message);
  }

  end() {
    this.following = true;
    this.box.scrollTop = this.box.scrollHeight;
    this.down.hidden = true;
  }

  /** Move the focus to the next or previous message. */
  walk(by) {
    const nodes = [...this.views.values()].map((view) => view.node);
    const at = nodes.indexOf(document.activeElement?.closest('.turn'));
    const next = nodes[at < 0 ? nodes.length - 1 : Math.max(0, Math.min(nodes.length - 1, at + by))];
    next?.focus({ preventScroll: true });
    next?.scrollIntoView({ block: 'nearest' });
  }

  /** The view of the message that has the focus. */
  get focused() {
    return this.views.get(document.activeElement?.closest('.turn')?.dataset.id);
  }

  #view(message) {
    const known = this.views.get(message.id);
    return known?.message === message ? known : new MessageView(message, this.act);
  }

  #draw(message) {
    const view = this.views.get(message.id);
    if (!view) return;
    const all = this.tree.siblings(message);
    view.show({
      place: { index: all.indexOf(message), count: all.length },
      answer: this.answers.get(message.id) ?? null,
      tokens: this.tokens,
      last: message.id === this.tree.current,
    });
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.box;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.down.hidden = this.following;
  }
}

/** Children become `nodes`; those that stay are not touched, so that focus and selection survive. */
function swap(box, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...box.childNodes]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, i) => { if (box.childNodes[i] !== node) box.insertBefore(node, box.childNodes[i] ?? null); });
}
