// The keyboard. What needs a modifier works everywhere; single keys work where nothing is being typed.
import { byId, el, word } from './dom.js';

const EVERYWHERE = [
  ['Enter', 'Send'], ['Shift Enter', 'New line'], ['Esc', 'Stop the answer, or close what is open'],
  ['↑', 'In the empty field: edit your last message'], ['Ctrl K', 'Search the conversations'],
  ['Ctrl Shift O', 'New conversation'], ['Ctrl .', 'Settings'],
];
const READING = [
  ['j k', 'Next, previous message'], ['e', 'Edit'], ['r', 'Regenerate'], ['c', 'Copy'], ['[ ]', 'Previous, next branch'],
  ['t', 'Colour the tokens'], ['i', 'To the text field'], ['?', 'This list'],
];

/** act: {stop, search, create, settings, tokens, focus, walk(by), message(name, ...)}; stop says whether it did anything. */
export function listen(act) {
  addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.isComposing) return;
    const name = named(event);
    const does = name && everywhere(act)[name];
    if (does) {
      event.preventDefault();
      does();
    } else if (event.key === 'Escape') act.stop();
    else if (!typing(event.target) && !event.ctrlKey && !event.metaKey && !event.altKey) single(act, event);
  });
}

const everywhere = (act) => ({ k: act.search, 'shift o': act.create, '.': act.settings });

function named(event) {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return '';
  return `${event.shiftKey ? 'shift ' : ''}${event.key.toLowerCase()}`;
}

function typing(target) {
  return target.matches?.('textarea, input:not([type=range]):not([type=checkbox]), [contenteditable]') || byId('dialog').open;
}

function single(act, event) {
  const does = {
    j: () => act.walk(1), k: () => act.walk(-1), t: act.tokens, i: act.focus, '?': showKeys, '/': act.search,
    e: () => act.message('edit'), r: () => act.message('regenerate'), c: () => act.message('copy'),
    '[': () => act.message('branch', -1), ']': () => act.message('branch', 1),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

export function showKeys() {
  const dialog = byId('dialog');
  const mac = /Mac|iP(hone|ad)/.test(navigator.platform);
  const row = ([keys, what]) => el('div', { class: 'key-row' },
    el('dt', {}, keys.split(' ').map((key) => el('kbd', {}, mac && key === 'Ctrl' ? '⌘' : key))), el('dd', {}, what));
  dialog.replaceChildren(
    el('div', { class: 'sheet-head' }, el('h2', {}, 'Keys'), word('Close', () => dialog.close())),
    el('dl', {}, EVERYWHERE.map(row)), el('h3', {}, 'While reading'), el('dl', {}, READING.map(row)));
  dialog.showModal();
}
