"""What only Redis itself can do in one step: its scripts."""

# Between reading the tokens and keeping an answer lies a call to the upstream; only Redis can tell whether a write came
# between. KEYS: entry, n tokens, n holds. ARGV: value, lifetime in ms, n, the n tokens as they were.
FILL = """
local n = tonumber(ARGV[3])
for i = 1, n do
  if redis.call('GET', KEYS[1 + i]) ~= ARGV[3 + i] then return 0 end
  if redis.call('EXISTS', KEYS[1 + n + i]) == 1 then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: n claims, n entries. ARGV: owner, lease in ms, n, n times whether to look for the entry.
# Answers: 1 claimed, 0 held by another, 2 the entry is there, 3 nobody need claim it.
CLAIM = """
local n, answers = tonumber(ARGV[3]), {}
for i = 1, n do
  if ARGV[3 + i] == '1' and redis.call('EXISTS', KEYS[n + i]) == 1 then
    answers[i] = 2
  elseif redis.call('SET', KEYS[i], ARGV[1], 'NX', 'PX', ARGV[2]) then
    answers[i] = 1
  else
    local holder = redis.call('GET', KEYS[i])
    answers[i] = holder == ARGV[1] and 1 or holder == '' and 3 or 0
  end
end
return answers
"""

# KEYS: claims. ARGV: owner, and for those that are the owner's a new lease in ms.
RENEW = """
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('SET', KEYS[i], ARGV[1], 'XX', 'PX', ARGV[2]) end
end
return 1
"""

# KEYS: claims. ARGV: owner, and for how many ms nobody need claim them: an empty value says so.
RELEASE = """
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then
    if ARGV[2] == '0' then redis.call('UNLINK', KEYS[i]) else redis.call('SET', KEYS[i], '', 'PX', ARGV[2]) end
  end
end
return 1
"""

# Accepted again: only who knows the mark may take it away. KEYS: standing. ARGV: accepted, lifetime in ms, mark.
ACCEPT = """
local held = redis.call('GET', KEYS[1])
if not held or held == ARGV[3] then held = ARGV[1] end
redis.call('SET', KEYS[1], held, 'PX', ARGV[2])
return 1
"""
