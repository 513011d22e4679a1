// One message on the page: its words, what is happening to it, and what can be done with it.
import { el, fit, number, word } from './dom.js';
import { Live } from './markdown.js';
import { Strip } from './tokens.js';

const ENDS = { length: 'Cut off: it reached the limit of tokens.', stopped: 'Stopped.' };

export class MessageView {
  /** act: {copy, edit, regenerate, proceed, branch, token}, each called with the message first. */
  constructor(message, act) {
    this.message = message;
    this.act = act;
    this.user = message.role === 'user';
    this.words = el('div', { class: 'words' });
    this.state = el('div', { class: 'state' });
    this.tools = el('footer', { class: 'tools' });
    this.node = el('article', { class: `turn ${message.role}`, tabindex: -1, 'data-id': message.id,
      'aria-label': this.user ? 'You' : 'The model' }, this.words, this.state, this.tools);
  }

  /** place: {index, count} among its siblings; answer: the Answer under way, or null; tokens: coloured or read. */
  show({ place, answer, tokens, last }) {
    this.node.classList.toggle('speaking', answer?.state === 'speaking');
    this.node.setAttribute('aria-busy', String(Boolean(answer)));
    if (!this.editing) this.#words(tokens && !this.user && this.message.tokens?.length > 0);
    this.state.replaceChildren(...happening(this.message, answer));
    if (!answer) this.tools.replaceChildren(...this.#tools(place, last));
    else if (this.tools.firstChild) this.tools.replaceChildren();
  }

  #words(asTokens) {
    if (this.user) {
      if (this.words.textContent !== this.message.content) this.words.textContent = this.message.content;
    } else if (asTokens) {
      if (!this.strip) {
        this.strip = new Strip((index, span) => this.act.token(this.message, index, span));
        this.words.replaceChildren(this.strip.node);
        this.live = null;
      }
      this.strip.show(this.message.tokens);
    } else {
      if (!this.live) {
        this.words.replaceChildren();
        this.live = new Live(this.words);
        this.strip = null;
      }
      if (this.live.text !== this.message.content) this.live.show(this.message.content);
    }
  }

  #tools(place, last) {
    const { message, act } = this;
    const tools = [];
    if (place.count > 1) tools.push(branches(place, (by) => act.branch(message, by)));
    if (message.content) tools.push(word('Copy', () => act.copy(message)));
    if (this.user) return [...tools, word('Edit', () => this.edit())];
    if (message.finish === 'error' && !message.content) return [...tools, word('Try again', () => act.proceed(message))];
    if (last && message.content && message.finish !== 'stop') tools.push(word('Continue', () => act.proceed(message)));
    return [...tools, word('Regenerate', () => act.regenerate(message))];
  }

  /** The words become a field; a changed text is a new branch. */
  edit() {
    if (!this.user || this.editing) return;
    this.editing = true;
    const area = el('textarea', { class: 'edit', rows: 1, 'aria-label': 'Your message' });
    area.value = this.message.content;
    const close = () => {
      this.editing = false;
      this.words.replaceChildren(this.message.content);
      this.node.focus({ preventScroll: true });
    };
    const done = () => {
      const text = area.value.trim();
      close();
      if (text && text !== this.message.content) this.act.edit(this.message, text);
    };
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') close();
      else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) done();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    area.addEventListener('input', () => fit(area));
    this.words.replaceChildren(area, el('div', { class: 'edit-tools' }, word('Send as a new branch', done), word('Cancel', close)));
    area.focus();
    fit(area);
  }
}

/** What is happening to an answer, or how it ended where that was not by itself. */
export function happening({ finish, error }, answer) {
  if (!answer && finish === 'error') return [el('p', { class: 'fault', role: 'alert' }, error ? sentence(error) : 'The answer failed.')];
  if (!answer) return ENDS[finish] ? [el('p', { class: 'aside' }, ENDS[finish])] : [];
  if (answer.state === 'busy') {
    const left = Math.max(1, Math.ceil((answer.until - Date.now()) / 1000));
    const what = answer.why.status === 429 ? 'The server is busy.' : 'The engine is not running yet.';
    return [el('p', { class: 'aside', title: answer.why.message }, `${what} Asking again in ${left} s.`)];
  }
  if (answer.state === 'reading') return [reading(answer.progress)];
  return answer.state === 'waiting' ? [el('p', { class: 'aside waiting' }, 'Waiting')] : [];
}

const sentence = (line) => `${line[0].toUpperCase()}${line.slice(1)}${/[.!?]$/.test(line) ? '' : '.'}`;

export function branches({ index, count }, step) {
  const arrow = (sign, label, by, off) => word(sign, () => step(by), { 'aria-label': label, disabled: off });
  return el('span', { class: 'branches', role: 'group', 'aria-label': `Branch ${index + 1} of ${count}` },
    arrow('‹', 'Previous branch', -1, index === 0), el('span', {}, `${index + 1}/${count}`),
    arrow('›', 'Next branch', 1, index === count - 1));
}

function reading({ read, total, reused = 0 }) {
  const bar = el('progress', { max: total, value: read, 'aria-label': 'Reading the conversation' });
  const kept = reused ? `, ${number(reused)} of them known from before` : '';
  return el('div', { class: 'reading' }, bar, el('span', {}, `Reading: ${number(read)} of ${number(total)} tokens${kept}`));
}
