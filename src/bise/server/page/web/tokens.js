// The tokens of an answer, coloured by how likely they were; one token's alternatives, and the fork there.
import { BYTES } from './answer.js';
import { el, percent } from './dom.js';

/** A space and a line break are seen as well. */
export function visible(text) {
  if (text.startsWith(BYTES)) return `‹${text.slice(1)}›`;
  return text.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/^ | $/g, '␣') || '‹part of a character›';
}

const shown = (text) => text.split(/(\n)/).map((part) => (part === '\n' ? el('span', { class: 'return' }, '↵') : part));
const likely = (logprob) => (logprob === null ? 1 : Math.exp(logprob));

export class Strip {
  /** pick(index, span): a token was chosen. */
  constructor(pick) {
    this.node = el('div', { class: 'strip', role: 'group', 'aria-label': 'Tokens. Arrow keys move, Enter shows alternatives.',
      onclick: (event) => this.#pick(event.target.closest('.token')), onkeydown: (event) => this.#key(event) });
    this.pick = pick;
    this.count = 0;
  }

  /** More tokens of the same answer. */
  show(tokens) {
    for (; this.count < tokens.length; this.count += 1) this.node.append(...this.#spans(tokens[this.count], this.count));
  }

  #spans([text, logprob], index) {
    const p = likely(logprob);
    const span = el('span', { class: 'token', role: 'button', tabindex: index ? -1 : 0, 'data-index': index,
      'aria-label': `${visible(text)}, ${percent(p)}` }, shown(text));
    span.style.setProperty('--doubt', (1 - p).toFixed(3));
    return text.includes('\n') ? [span, ...Array.from(text.matchAll(/\n/g), () => el('br'))] : [span];
  }

  #pick(span) {
    if (span) this.pick(Number(span.dataset.index), span);
  }

  #key(event) {
    const all = this.node.querySelectorAll('.token');
    const at = Number(event.target.dataset.index);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === 'Enter' || event.key === ' ') this.#pick(event.target);
    else if (to === undefined) return;
    else if (all[to]) {
      event.target.tabIndex = -1;
      all[to].tabIndex = 0;
      all[to].focus();
    }
    event.preventDefault();
    event.stopPropagation();
  }
}

/** fork(text): what should have been said there. */
export function alternatives(token, span, fork) {
  const [chosen, logprob, others] = token;
  const all = others.some(([text]) => text === chosen) ? others : [...others, [chosen, logprob]];
  const box = el('div', { class: 'alternatives', popover: 'auto', role: 'dialog', 'aria-label': `Instead of ${visible(chosen)}` });
  const pick = (text) => { box.hidePopover(); fork(text); };
  box.append(...all.map(([text, lp]) => choice(text, lp, text === chosen, pick)),
    el('p', { class: 'aside' }, all.length > 1 ? 'Choose one to go on from there in a new branch.' : 'The server sent no alternatives.'));
  box.addEventListener('toggle', (event) => { if (event.newState === 'closed') { box.remove(); span.focus({ preventScroll: true }); } });
  box.addEventListener('keydown', arrows);
  document.body.append(box);
  box.showPopover();
  place(box, span);
  box.querySelector('button:not([disabled])')?.focus();
}

function choice(text, logprob, chosen, pick) {
  const p = likely(logprob);
  const bar = el('span', { class: 'bar' });
  bar.style.setProperty('--part', p.toFixed(3));
  return el('button', { type: 'button', class: chosen ? 'choice chosen' : 'choice', disabled: text.startsWith(BYTES) || text === '',
    onclick: () => pick(text), 'aria-current': chosen ? 'true' : null, title: chosen ? 'This is what was said' : null },
  el('span', { class: 'piece' }, visible(text)), bar, el('span', { class: 'share' }, percent(p)));
}

function arrows(event) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by) return;
  const all = [...event.currentTarget.querySelectorAll('button:not([disabled])')];
  all[(all.indexOf(document.activeElement) + by + all.length) % all.length]?.focus();
  event.preventDefault();
  event.stopPropagation();
}

function place(box, span) {
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left - 12, innerWidth - width - 8));
  const below = at.bottom + 6;
  const top = below + height < innerHeight - 8 ? below : Math.max(8, at.top - height - 6);
  box.style.setProperty('left', `${left}px`);
  box.style.setProperty('top', `${top}px`);
}

/** What the colours mean. */
export function legend() {
  const steps = [1, 0.8, 0.6, 0.4, 0.2, 0].map((p) => {
    const step = el('span', { class: 'token' }, percent(p).replace('< 0.1', '0'));
    step.style.setProperty('--doubt', String(1 - p));
    return step;
  });
  return [el('span', {}, 'How likely each token was'), el('span', { class: 'steps' }, steps), el('span', {}, 'Choose a token to see what else could have come.')];
}
