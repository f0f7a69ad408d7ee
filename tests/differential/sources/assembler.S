/* What compilers seldom write: short loops, jrcxz, conditional tail calls, a fall through into padding. */
	.text
	.globl counted_loop
	.type counted_loop, @function
counted_loop:				# rcx = rdi; sum of 1..n by `loop`
	NOP5
	mov %rdi, %rcx
	and $0x3f, %ecx
	xor %eax, %eax
	jrcxz 2f
1:	add %rcx, %rax
	loop 1b
2:	RETURN
	.size counted_loop, . - counted_loop

	.globl conditional_tail
	.type conditional_tail, @function
conditional_tail:
	NOP5
	test $1, %dil
	jnz counted_loop
	lea 1(%rdi,%rsi,4), %rax
	jrcxz 3f
	xor %rdx, %rax
3:	RETURN
	.size conditional_tail, . - conditional_tail

	.globl serialises
	.type serialises, @function
serialises:				# returns from no interrupt to the next instruction, as sync_core() does
	NOP5
	lea 3(%rdi,%rsi,2), %rax
	mov %ss, %ecx
	push %rcx
	push %rsp
	addq $8, (%rsp)
	pushfq
	mov %cs, %ecx
	push %rcx
	push $1f
	iretq
1:	add %rdx, %rax
	RETURN
	.size serialises, . - serialises

	.globl keeps_everything
	.type keeps_everything, @function
keeps_everything:			# no ftrace site: r10, r11 and the flags belong to the caller
	lea (%rdi,%rsi), %rax
	RETURN
	.size keeps_everything, . - keeps_everything

	.globl watches
	.type watches, @function
watches:				# returns 0 if r10, r11 and the carry and zero flags survive the call
	push %rbx
	mov $0x1122334455667788, %r10
	mov $0x99aabbccddeeff00, %r11
	xor %eax, %eax
	cmp $1, %eax			# carry
	call keeps_everything
	pushfq
	pop %rbx
	and $0x41, %ebx
	xor $0x01, %ebx
	mov $0x1122334455667788, %rax
	xor %rax, %r10
	mov $0x99aabbccddeeff00, %rax
	xor %rax, %r11
	mov %r10, %rax
	or %r11, %rax
	or %rbx, %rax
	pop %rbx
	RETURN
	.size watches, . - watches

	.globl keeps_tail
	.type keeps_tail, @function
keeps_tail:
	test %rdi, %rdi
	jz keeps_everything
	jmp callee
	.size keeps_tail, . - keeps_tail

#ifdef THUNKS
	.globl __x86_return_thunk
	.type __x86_return_thunk, @function
__x86_return_thunk:
	ret
	int3
	.size __x86_return_thunk, . - __x86_return_thunk
	.irp reg, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
	.globl __x86_indirect_thunk_\reg
	.type __x86_indirect_thunk_\reg, @function
__x86_indirect_thunk_\reg:
	jmp *%\reg
	int3
	.size __x86_indirect_thunk_\reg, . - __x86_indirect_thunk_\reg
	.endr
#endif
	.section .note.GNU-stack,"",@progbits
