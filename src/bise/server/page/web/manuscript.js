// For a model without a chat format: one text that the model goes on with. Its tree has the same messages; the text is
// what the path says, end to end.
import { byId, el, fit, word } from './dom.js';
import { branches, happening } from './message.js';
import { Strip } from './tokens.js';

export class Manuscript {
  /** act: {proceed(), stop(), again(message), branch(message, by), token(message, index, span)} */
  constructor(act) {
    this.act = act;
    this.box = byId('thread');
    this.field = el('textarea', { class: 'manuscript', 'aria-label': 'The text that is continued', spellcheck: false,
      placeholder: 'This model has no chat format: it goes on with a text. Begin one here.' });
    this.strip = el('div', { class: 'words' });
    this.tools = el('footer', { class: 'tools' });
    this.state = el('div', { class: 'state' });
    this.node = el('div', { class: 'turn writing' }, this.field, this.state, this.tools, this.strip);
    this.field.addEventListener('input', () => fit(this.field));
    this.field.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      act.proceed();
    });
  }

  get text() {
    return this.field.value;
  }

  show(tree, answer, tokens) {
    if (!this.node.isConnected) this.box.replaceChildren(this.node);
    const path = tree.path;
    const text = path.map((message) => message.content).join('');
    if (path.length && this.field.value !== text) this.field.value = text;
    fit(this.field);
    this.field.readOnly = Boolean(answer);
    const last = path.at(-1);
    this.state.replaceChildren(...(last?.role === 'assistant' ? happening(last, answer) : []));
    this.#tools(tree, last, answer);
    this.#strip(last, tokens);
    if (answer) this.box.scrollTop = this.field.offsetHeight - this.box.clientHeight;
  }

  clear() {
    this.field.value = '';
  }

  #tools(tree, last, answer) {
    const now = answer ? 'speaking' : `${last?.id} ${tree.messages.size}`;
    if (now === this.now) return; // buttons stay what they are, so that they can be pressed
    this.now = now;
    const tools = answer ? [word('Stop', () => this.act.stop(), { title: 'Esc' })]
      : [word('Continue', () => this.act.proceed(), { title: 'Ctrl Enter' })];
    if (!answer && last?.role === 'assistant') {
      const all = tree.siblings(last);
      tools.push(word('Another way', () => this.act.again(last)));
      if (all.length > 1) tools.push(branches({ index: all.indexOf(last), count: all.length }, (by) => this.act.branch(last, by)));
    }
    this.tools.replaceChildren(...tools);
  }

  #strip(last, tokens) {
    if (!tokens || !last?.tokens?.length) {
      this.shown = null;
      return this.strip.replaceChildren();
    }
    if (this.shown?.message !== last) {
      this.shown = { message: last, strip: new Strip((index, span) => this.act.token(last, index, span)) };
      this.strip.replaceChildren(this.shown.strip.node);
    }
    this.shown.strip.show(last.tokens);
  }
}

/** The person's text becomes messages of the tree: what was typed behind the path, or a new beginning. */
export function written(tree, text) {
  const known = tree.path.map((message) => message.content).join('');
  if (known && text.startsWith(known)) return tree.add('user', text.slice(known.length), tree.current);
  return tree.add('user', text, null);
}
